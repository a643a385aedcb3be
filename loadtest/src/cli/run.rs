//! `viahop-load run`: callers and callees around an element.

use super::options::{Called, Calling, Written, read_cores, shards};
use super::{Cores, Outcome};
use crate::clock::ns;
use crate::endpoint::{Endpoint, parse_target};
use crate::run::Plan;

/// Play both ends around an element: callers that send to it, and the backends it sends to.
///
/// Without --target the callers call the first backend: that is what this machine can do at most.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The element, as sip:HOST:PORT, or sip:HOST:PORT;transport=tcp.
    #[arg(long, value_parser = parse_target, env = "VIAHOP_LOAD_TARGET")]
    target: Option<Endpoint>,
    /// Cores of the callers, one shard each: 0,2-3. Default: one shard, anywhere.
    #[arg(long, value_parser = read_cores, value_name = "LIST")]
    cores: Option<Cores>,
    /// Cores of the callees, one shard each. Default: one shard, anywhere.
    #[arg(long, value_parser = read_cores, value_name = "LIST")]
    callee_cores: Option<Cores>,
    #[command(flatten)]
    called: Called,
    #[command(flatten)]
    calling: Calling,
    #[command(flatten)]
    written: Written,
}

pub fn run(args: &Args) -> Outcome {
    args.written.run(&plan(args)?)
}

fn plan(args: &Args) -> Result<Plan, crate::failure::Failure> {
    let cores = shards(args.callee_cores.as_deref().unwrap_or_default());
    let mut callees = args.called.config(cores, args.calling.password.as_deref())?;
    callees.segments = args.calling.gso;
    let target = args.target.unwrap_or(callees.backends[0]);
    args.calling.suits(target)?;
    let calls = args.calling.config(target, shards(args.cores.as_deref().unwrap_or_default()))?;
    callees.timers = calls.timers;
    Ok(Plan {
        calls: Some(calls),
        callees: Some(callees),
        straight: args.target.is_none(),
        until_ns: u64::MAX,
        lateness_max_ns: ns(*args.calling.lateness_max),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn callees_repeat_and_give_up_by_the_t1_that_is_given_for_both() {
        let plan = plan(&Line::parse_from(["run", "--t1", "20ms"]).args).unwrap();
        let timers = plan.callees.unwrap().timers;
        assert_eq!(timers.give_up_ns(), 1_280_000_000);
        assert_eq!(timers, plan.calls.unwrap().timers);
    }
}
