//! `[[listen]]`: where messages come in.

use super::nowhere;
use super::value::Reader;
use crate::control::config::Listen;
use crate::control::config::address;
use crate::control::config::file;
use crate::control::config::problem::Problem;
use crate::dataplane::limits::LISTENERS_MAX;
use crate::dataplane::tables::{Network, Side};
use crate::dataplane::transport::Transport;
use std::collections::HashMap;

impl Reader<'_> {
    pub(super) fn listeners(&mut self, listen: &[&file::Listen]) -> Option<Vec<Listen>> {
        let Some(first) = listen.first() else {
            let help = "[[listen]]\naddress = \"udp:0.0.0.0:5060\"";
            self.problems.push(nowhere("nothing to listen on").help(format!("add a listener:\n{help}")));
            return None;
        };
        if listen.len() > LISTENERS_MAX {
            self.error(first.address.span(), format!("{} listeners", listen.len()), format!("at most {LISTENERS_MAX}"));
        }
        let mut names = HashMap::new();
        let mut ports = HashMap::new();
        let mut listeners = Vec::new();
        for one in listen {
            let Some((transport, address)) = self.address(&one.address, address::listen) else { continue };
            let text = format!("{transport}:{address}");
            if let Some(other) = ports.insert((transport.protocol(), address), text.clone()) {
                let (title, label) = match other == text {
                    true => (format!("`{text}` is listened on twice"), "leave one of them out"),
                    // The kernel would spread connections over the two by chance.
                    false => (format!("`{other}` and `{text}` are one TCP port"), "give it a port of its own"),
                };
                self.error(one.address.span(), title, label);
                continue;
            }
            let name = self.name(&one.name, &mut names, || text, one.address.span());
            if let Some(written) = one.name.as_ref().filter(|name| name.get_ref() == "egress") {
                let label = "metrics call the ports towards backends that";
                self.error(written.span(), "a listener cannot be called `egress`", label);
            }
            let host_port = match transport {
                Transport::Udp | Transport::Tcp => address::host_port,
                Transport::Tls => address::tls_host_port,
                Transport::Ws => address::ws_host_port,
                Transport::Wss => address::wss_host_port,
            };
            let advertise = one.advertise.as_ref().and_then(|value| self.address(value, host_port));
            let side = self.word(&one.side, Side::Outside, &[("outside", Side::Outside), ("inside", Side::Inside)]);
            let tls = self.server(one, transport, advertise.as_ref());
            let (proxies, origins) = (self.proxies(one, transport), self.origins(one, transport));
            let at = one.address.span();
            listeners.push(Listen { name, transport, address, advertise, side, tls, proxies, origins, at });
        }
        if listeners.iter().all(|listener| listener.side == Side::Inside) && !listeners.is_empty() {
            let label = "clients need a listener with `side = \"outside\"`";
            self.error(first.address.span(), "all listeners face inside", label);
        }
        Some(listeners)
    }

    fn proxies(&mut self, one: &file::Listen, transport: Transport) -> Vec<Network> {
        let Some(list) = &one.proxy_protocol else { return Vec::new() };
        if transport == Transport::Udp {
            let label = "a datagram has no beginning of a connection to stand at";
            self.error(list.span(), "`proxy_protocol` of a listener on `udp:`", label);
        }
        list.get_ref().iter().filter_map(|network| self.address(network, address::network)).collect()
    }

    /// The pages that may open WebSockets.
    fn origins(&mut self, one: &file::Listen, transport: Transport) -> Vec<String> {
        let Some(list) = &one.origins else {
            if transport.is_websocket() {
                let label = "without it, any page on the Web could use a phone's network";
                let problem = Problem::error(one.address.span(), "nothing says which pages may open WebSockets", label);
                self.problems.push(problem.help("add `origins = [\"https://phone.example.net\"]`; `[\"*\"]`: all"));
            }
            return Vec::new();
        };
        if !transport.is_websocket() {
            let label = "only `ws:` and `wss:` have a use for it";
            self.error(list.span(), format!("`origins` of a listener on `{transport}:`"), label);
        }
        for origin in list.get_ref() {
            let text = origin.get_ref();
            let host = text.split_once("://").map(|(_, host)| host);
            if text != "*" && host.is_none_or(|host| host.is_empty() || host.contains('/')) {
                self.error(
                    origin.span(),
                    format!("`{text}` is no origin"),
                    "like `https://phone.example.net`, without a path",
                );
            }
        }
        list.get_ref().iter().map(|origin| origin.get_ref().to_ascii_lowercase()).collect()
    }
}

/// What `[[route]]` and everything we print call a listener: its name or, without one, its address as it is read. One that
/// cannot be read is called what is written, since that mistake has been told.
pub(super) fn name(one: &file::Listen) -> String {
    let written = one.address.get_ref();
    let by_address = || address::listen(written).map_or(written.clone(), |(transport, at)| format!("{transport}:{at}"));
    one.name.as_ref().map_or_else(by_address, |name| name.get_ref().clone())
}
