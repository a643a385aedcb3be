//! `viahop-load uac`: callers.

use super::options::{Calling, Written, read_cores, shards};
use super::{Cores, Outcome};
use crate::clock::ns;
use crate::endpoint::{Endpoint, parse_target};
use crate::run::Plan;

/// Play callers: place calls at fixed times, whatever the element does, and check all that comes back.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The element, as sip:HOST:PORT, or sip:HOST:PORT;transport=tcp.
    #[arg(long, value_parser = parse_target, env = "VIAHOP_LOAD_TARGET")]
    target: Endpoint,
    /// Cores, one shard each: 0,2-3. Default: one shard, anywhere.
    #[arg(long, value_parser = read_cores, value_name = "LIST")]
    cores: Option<Cores>,
    #[command(flatten)]
    calling: Calling,
    #[command(flatten)]
    written: Written,
}

pub fn run(args: &Args) -> Outcome {
    args.calling.suits(args.target)?;
    let cores = shards(args.cores.as_deref().unwrap_or_default());
    let plan = Plan {
        calls: Some(args.calling.config(args.target, cores)?),
        callees: None,
        straight: false,
        until_ns: u64::MAX,
        lateness_max_ns: ns(*args.calling.lateness_max),
    };
    args.written.run(&plan)
}
