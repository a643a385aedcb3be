//! `viahop ctl`: operate a running viahop. It asks over the socket or over loopback; what it does is in the control plane.
//!
//! | file | |
//! |---|---|
//! | `client` | finds the viahop that is meant, and speaks to it |
//! | `show` | answers in words and tables |
//! | `table` | aligned columns, CSV |
//! | `top` | a screen that is drawn anew each second |

pub(super) mod client;
mod show;
mod table;
mod top;

use super::{FAILED, NOT_READY, USAGE};
use crate::cli::{self, Change, CtlCommand, Shape};
use crate::say;
use client::{Client, Trouble, nothing};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

/// Does what `args` say.
pub fn run(args: &cli::Ctl) -> ExitCode {
    if let Err(why) = fits(args) {
        remark!("error: {why}");
        return ExitCode::from(USAGE);
    }
    match Client::find(args).and_then(|client| obey(args, &client)) {
        Ok(text) => {
            say::answer(format_args!("{text}"));
            ExitCode::SUCCESS
        }
        Err(trouble) => {
            remark!("{trouble}");
            ExitCode::from(match trouble {
                Trouble::Nobody(_) => NOT_READY,
                Trouble::Refused { exit_code, .. } => exit_code,
                Trouble::Strange(_) => FAILED,
            })
        }
    }
}

/// Whether the answer can be had in the form that is asked for.
fn fits(args: &cli::Ctl) -> Result<(), &'static str> {
    let is_list = matches!(
        args.command,
        CtlCommand::Backends | CtlCommand::Connections { .. } | CtlCommand::Errors { .. } | CtlCommand::Events { .. }
    );
    match args.format {
        Shape::Kamcmd if !matches!(args.command, CtlCommand::Backends) => {
            Err("only `backends` knows `--format kamcmd`")
        }
        Shape::Json | Shape::Csv if matches!(args.command, CtlCommand::Top { .. }) => {
            Err("`top` is for people: scripts read `status --format json`, or /metrics")
        }
        Shape::Csv if !is_list => Err("only lists know `--format csv`: `backends`, `connections`, `errors`, `events`"),
        _ => Ok(()),
    }
}

fn obey(args: &cli::Ctl, client: &Client) -> Result<String, Trouble> {
    let is_json = args.format == Shape::Json;
    let or_json = |answer: &Value, text: &dyn Fn(&Value) -> String| if is_json { pretty(answer) } else { text(answer) };
    match &args.command {
        CtlCommand::Status => {
            let answer = client.get("/status.json")?;
            Ok(or_json(&answer, &|answer| show::status(answer, &client.place)))
        }
        CtlCommand::Top { screens } => top::run(client, *screens),
        CtlCommand::Backends => {
            let answer = client.get("/status.json")?;
            Ok(match args.format {
                Shape::Json => pretty(&answer["backends"]),
                Shape::Kamcmd => show::kamcmd(&answer),
                Shape::Csv => show::backends_in_full(&answer).csv(),
                Shape::Table => show::backends(&answer).text(),
            })
        }
        CtlCommand::Backend { name, change } => {
            let body = match change {
                Change::Ready => json!({ "backend": name, "state": "ready" }),
                Change::Drain => json!({ "backend": name, "state": "drain" }),
                Change::Maint => json!({ "backend": name, "state": "maint" }),
                Change::Weight { parts } => json!({ "backend": name, "weight": parts }),
            };
            Ok(or_json(&client.post("/backend", &body)?, &show::changed))
        }
        CtlCommand::Reload { dry_run } => {
            Ok(or_json(&client.post("/reload", &json!({ "dry_run": dry_run }))?, &show::reloaded))
        }
        CtlCommand::Drain { wait } => {
            let answer = client.post("/drain", &nothing())?;
            if *wait {
                remark!("{}", show::draining(&answer).trim_end());
                wait_for_the_end(client);
                return Ok(if is_json { pretty(&answer) } else { "ended\n".into() });
            }
            Ok(or_json(&answer, &show::draining))
        }
        CtlCommand::Events { json, lines } => {
            let answer = client.get("/events")?;
            let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
            let last = &all[all.len().saturating_sub(*lines)..];
            Ok(match args.format {
                _ if *json => last.iter().map(|event| format!("{event}\n")).collect(),
                Shape::Json => pretty(&Value::Array(last.to_vec())),
                Shape::Csv => show::events_in_full(last).csv(),
                Shape::Table | Shape::Kamcmd => show::events(last),
            })
        }
        CtlCommand::Errors { lines } => {
            let answer = client.get("/errors")?;
            let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
            let last = &all[all.len().saturating_sub(*lines)..];
            Ok(match args.format {
                Shape::Json => pretty(&Value::Array(last.to_vec())),
                Shape::Csv => show::errors_in_full(last).csv(),
                Shape::Table | Shape::Kamcmd => show::errors(last),
            })
        }
        CtlCommand::Connections { peer } => {
            let answer = client.get(&match peer {
                Some(peer) => format!("/connections?peer={peer}"),
                None => "/connections".into(),
            })?;
            Ok(match args.format {
                Shape::Json => pretty(&answer),
                Shape::Csv => show::connections_in_full(&answer).csv(),
                Shape::Table | Shape::Kamcmd => show::connections(&answer),
            })
        }
        CtlCommand::Trace { call_id, seconds } => follow(client, call_id, *seconds, is_json),
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Prints messages of the call as they come, until its time is over.
fn follow(client: &Client, call_id: &str, seconds: u64, is_json: bool) -> Result<String, Trouble> {
    let answer = client.post("/trace", &json!({ "call_id": call_id, "seconds": seconds }))?;
    remark!("following {call_id} for {seconds} s");
    let mut after = 0;
    loop {
        let answer = client.get(&format!("/trace?number={}&after={after}", answer["trace"]))?;
        for message in answer["messages"].as_array().into_iter().flatten() {
            after = message["number"].as_u64().unwrap_or(after);
            let text = if is_json { format!("{message}\n") } else { show::traced(message) };
            say::answer(format_args!("{text}"));
        }
        if !say::arrives() {
            // Whoever read it has gone, as `head` does.
            return Ok(String::new());
        }
        if answer["is_over"] == true {
            return Ok(if after == 0 && !is_json { "no message of this call came\n".into() } else { String::new() });
        }
        sleep(Duration::from_millis(200));
    }
}

/// Returns when it does not answer any more, or another one does that was started in its place. The drain has a limit of its own.
fn wait_for_the_end(client: &Client) {
    while client.get("/status.json").is_ok_and(|status| status["draining"] == true) {
        sleep(Duration::from_millis(200));
    }
}
