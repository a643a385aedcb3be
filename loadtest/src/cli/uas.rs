//! `viahop-load uas`: callees.

use super::options::{Called, Written, positive, read_cores, shards};
use super::{Cores, Outcome};
use crate::clock::SECOND_NS;
use crate::run::Plan;

/// Play backends: answer what comes, and keep book of which call reached whom.
///
/// What a backend does with a call is decided by whom it is for: busy… gets 486, ring… gets 180 and nothing more until
/// CANCEL, everybody else 180 and 200. Any other request gets 200, a SUBSCRIBE also its NOTIFY.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End by itself after so many seconds. Default: when it is told to (Ctrl-C).
    #[arg(long, value_parser = positive)]
    seconds: Option<f64>,
    /// Cores, one shard each: 0,2-3. Default: one shard, anywhere.
    #[arg(long, value_parser = read_cores, value_name = "LIST")]
    cores: Option<Cores>,
    /// The password that --challenge demands.
    #[arg(long, value_name = "PASSWORD", env = "VIAHOP_LOAD_PASSWORD")]
    password: Option<String>,
    /// Let responses of one length share their way through the kernel (UDP GSO): one core then sends more, in tighter
    /// bursts.
    #[arg(long)]
    gso: bool,
    #[command(flatten)]
    called: Called,
    #[command(flatten)]
    written: Written,
}

pub fn run(args: &Args) -> Outcome {
    let cores = shards(args.cores.as_deref().unwrap_or_default());
    let mut callees = args.called.config(cores, args.password.as_deref())?;
    callees.segments = args.gso;
    for (index, endpoint) in callees.backends.iter().enumerate() {
        remark!("backend {index} {endpoint}");
    }
    let until_ns = args.seconds.map_or(u64::MAX, |seconds| (seconds * SECOND_NS as f64) as u64);
    args.written.run(&Plan { calls: None, callees: Some(callees), straight: false, until_ns, lateness_max_ns: 0 })
}
