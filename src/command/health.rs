//! `viahop health`: whether a running viahop wants traffic, as an exit code.

use super::NOT_READY;
use super::ctl::client::plain;
use crate::cli::{self, Endpoint};
use std::process::ExitCode;
use std::time::Duration;

/// Asks `/ready`.
pub fn run(args: &cli::Health) -> ExitCode {
    let Endpoint::At(admin) = args.admin else {
        remark!("not ready: nobody can be asked, since the HTTP endpoint is off (--admin, VIAHOP_ADMIN)");
        return ExitCode::from(NOT_READY);
    };
    match get(&format!("http://{admin}/ready"), Duration::from_millis(args.timeout)) {
        Ok((200, text)) => {
            say!("{}", text.trim());
            ExitCode::SUCCESS
        }
        Ok((_, text)) => {
            remark!("not ready: {}", text.trim());
            ExitCode::from(NOT_READY)
        }
        Err(error) => {
            remark!("not ready: no viahop answers at {admin}: {}", plain(&error));
            ExitCode::from(NOT_READY)
        }
    }
}

/// Status code and body of an answer.
///
/// # Errors
/// Nobody answered in time.
pub fn get(url: &str, timeout: Duration) -> Result<(u16, String), ureq::Error> {
    // An environment that sends all of HTTP through a proxy does not mean this.
    let config = ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).proxy(None);
    let mut response = config.build().new_agent().get(url).call()?;
    Ok((response.status().as_u16(), response.body_mut().read_to_string()?))
}
