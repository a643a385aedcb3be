//! `[balancer]`: what concerns the process as a whole.

use super::value::Reader;
use crate::control::config::address;
use crate::control::config::file::{self, Value};
use crate::control::config::problem::Problem;
use crate::control::config::{Cores, Secret, TokenKey};
use crate::dataplane::keys::KEY_IDS;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::{Range, RangeInclusive};
use toml::Spanned;

/// Octets of a secret at least: as many as there are in the keys made of it.
const SECRET_MIN: usize = 16;

impl Reader<'_> {
    pub(super) fn cores(&mut self, balancer: &file::Balancer) -> Cores {
        if let (Some(_), Some(shards)) = (&balancer.cores, &balancer.shards) {
            let label = "`cores` says how many there are already";
            self.error(shards.span(), "`cores` and `shards` are both given", label);
        }
        if let Some(cores) = &balancer.cores {
            let mut list = Vec::new();
            for core in cores.get_ref() {
                match usize::try_from(*core.get_ref()) {
                    Ok(number) if list.contains(&number) => {
                        self.error(core.span(), format!("core {number} is named twice"), "one shard runs on a core");
                    }
                    Ok(number) => list.push(number),
                    Err(_) => drop(self.error(core.span(), "a core has a number from 0 on", "see `lscpu`")),
                }
            }
            if cores.get_ref().is_empty() {
                self.error(cores.span(), "no core is named", "leave `cores` out to use all of them");
            }
            return Cores::List(list);
        }
        match &balancer.shards {
            Some(_) => Cores::Count(self.number(&balancer.shards, 1, 1, 1024, "shard count") as usize),
            None => Cores::All,
        }
    }

    pub(super) fn secret(&mut self, balancer: &file::Balancer) -> Secret {
        match (&balancer.secret, &balancer.secret_file) {
            (Some(secret), Some(_)) => {
                self.error(secret.span(), "`secret` and `secret_file` are both given", "keep one of them");
                Secret::Own
            }
            (Some(secret), None) => {
                if secret.get_ref().len() < SECRET_MIN {
                    let title = format!("the secret has {} octets", secret.get_ref().len());
                    let label = format!("at least {SECRET_MIN}");
                    self.error(secret.span(), title, label).help =
                        Some("`openssl rand -base64 32` makes a good one".into());
                }
                Secret::Given(secret.get_ref().clone())
            }
            (None, Some(path)) => Secret::File(path.get_ref().into()),
            (None, None) => Secret::Own,
        }
    }

    pub(super) fn nameservers(&mut self, value: &Value<Vec<Spanned<String>>>, pools: &[file::Pool]) -> Vec<SocketAddr> {
        let Some(list) = value else { return Vec::new() };
        if pools.iter().all(|pool| pool.discover.is_none()) {
            let label = "asked only where a pool says `discover`; names elsewhere are this machine's to look up";
            self.warn(list.span(), "`nameservers` has no effect here", label);
        }
        list.get_ref().iter().filter_map(|one| self.address(one, address::nameserver)).collect()
    }

    pub(super) fn token_keys(&mut self, value: &Value<Vec<file::TokenKey>>) -> Vec<TokenKey> {
        let Some(list) = value else { return vec![TokenKey { id: 0, file: None }] };
        let mut keys: Vec<TokenKey> = Vec::new();
        let mut seen: HashMap<u8, Range<usize>> = HashMap::new();
        for one in list.get_ref() {
            let most = KEY_IDS as i64 - 1;
            let id = self.number(&Some(one.id.clone()), 0, 0, most, "key id") as u8;
            if let Some(first) = seen.insert(id, one.id.span()) {
                let problem = Problem::error(one.id.span(), format!("two token keys of the id {id}"), "the second");
                let help = "a token says only the id of its key: give each another, and no id to two keys within the life of a call";
                self.problems.push(problem.beside(first, None, "the first").help(help));
            }
            keys.push(TokenKey { id, file: one.file.as_ref().map(|file| file.get_ref().into()) });
        }
        if keys.is_empty() {
            self.error(list.span(), "no token key is named", "leave `token_keys` out for the one made of the secret");
        }
        keys
    }

    pub(super) fn egress(&mut self, addresses: &Value<Vec<Spanned<String>>>) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
        let (mut v4, mut v6) = (None, None);
        for value in addresses.iter().flat_map(|list| list.get_ref()) {
            let free = match value.get_ref().parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => v4.replace(address).is_none(),
                Ok(IpAddr::V6(address)) => v6.replace(address).is_none(),
                Err(_) => {
                    let title = format!("`{}` is not an address", value.get_ref());
                    self.error(value.span(), title, "an address of this machine, without a port");
                    continue;
                }
            };
            if !free {
                let label = "one address for IPv4 and one for IPv6";
                self.error(value.span(), "two addresses of one family to send from", label);
            }
        }
        (v4, v6)
    }

    /// `FIRST-LAST`, or one port.
    pub(super) fn ports(&mut self, value: &Value<String>) -> Option<RangeInclusive<u16>> {
        let value = value.as_ref()?;
        let (first, last) = value.get_ref().split_once('-').unwrap_or((value.get_ref(), value.get_ref()));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if first > 0 && first <= last => Some(first..=last),
            _ => {
                let title = format!("`{}` is not a range of ports", value.get_ref());
                self.error(value.span(), title, "like `40000-40015`: from 1 to 65535, the lower one first");
                None
            }
        }
    }

    pub(super) fn buffer(&mut self, value: &Value<i64>, default: usize) -> usize {
        const LEAST: i64 = 64 << 10;
        const MOST: i64 = 1 << 30;
        self.number(value, default as u32, LEAST, MOST, "buffer size") as usize
    }
}
