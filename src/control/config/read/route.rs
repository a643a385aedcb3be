//! `[[route]]`: which requests go to which pool.

use super::value::Reader;
use super::words::did_you_mean;
use crate::control::config::Route;
use crate::control::config::address;
use crate::control::config::file;
use crate::dataplane::sip::start_line::Method;
use std::collections::HashMap;
use toml::Spanned;

impl Reader<'_> {
    pub(super) fn routes(&mut self, routes: &[file::Route], listeners: &[String], pools: &[String]) -> Vec<Route> {
        let mut names = HashMap::new();
        let mut read = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let at = route.name.as_ref().map_or(route.pool.span(), Spanned::span);
            let name = self.name(&route.name, &mut names, || format!("route-{}", index + 1), at);
            for (key, list) in [("methods", &route.methods), ("domains", &route.domains), ("listen", &route.listen)] {
                if let Some(list) = list.as_ref().filter(|list| list.get_ref().is_empty()) {
                    let label = "leave it out if the rule is for all";
                    self.error(list.span(), format!("`{key}` is empty, so the rule never holds"), label);
                }
            }
            let pool = self.position(&route.pool, pools, "pool");
            let listeners = route.listen.as_ref().map(|list| {
                let position = |one| self.position(one, listeners, "listener");
                list.get_ref().iter().map(position).map(|index| index as u8).collect()
            });
            let methods = route.methods.as_ref().map(|list| self.methods(list.get_ref()));
            let domains = route.domains.as_ref().map(|list| self.domains(list.get_ref()));
            read.push(Route { name, methods, domains, listeners, pool: pool as u16 });
        }
        if let Some((route, _)) = routes
            .iter()
            .zip(&read)
            .rev()
            .skip(1)
            .find(|(_, one)| one.methods.is_none() && one.domains.is_none() && one.listeners.is_none())
        {
            let label = "it has no condition, so the rules behind it are never reached";
            self.warn(route.pool.span(), "this rule matches everything", label);
        }
        self.warn_of_parted_invites(routes, &read);
        read
    }

    /// An INVITE, its CANCEL and the ACK of its failure are one transaction, which has to come to one pool.
    fn warn_of_parted_invites(&mut self, routes: &[file::Route], read: &[Route]) {
        for (route, rule) in routes.iter().zip(read) {
            let list = route.methods.as_ref().map(|list| list.get_ref().iter()).unwrap_or_default();
            let Some(invite) = list.into_iter().find(|value| value.get_ref() == Method::Invite.name()) else {
                continue;
            };
            // By a rule that asks no more of a request than this one does; without one, to the first pool.
            let pool_of = |method: Method| {
                let takes = |one: &&Route| {
                    one.methods.as_ref().is_none_or(|methods| methods.contains(&method))
                        && (one.domains.is_none() || one.domains == rule.domains)
                        && (one.listeners.is_none() || one.listeners == rule.listeners)
                };
                read.iter().find(takes).map_or(0, |one| one.pool)
            };
            let parted = [Method::Ack, Method::Cancel].into_iter().filter(|&method| pool_of(method) != rule.pool);
            let parted: Vec<&str> = parted.map(|method| method.name()).collect();
            if !parted.is_empty() {
                let title = format!("this rule takes INVITE without {}", parted.join(" and "));
                let label = "add them: as it is they go to another pool, whose servers know nothing of its calls";
                self.warn(invite.span(), title, label);
            }
        }
    }

    /// The index of what is called `name`.
    fn position(&mut self, name: &Spanned<String>, known: &[String], what: &str) -> usize {
        known.iter().position(|one| one == name.get_ref()).unwrap_or_else(|| {
            let title = format!("there is no {what} of the name `{}`", name.get_ref());
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let label = match names.is_empty() {
                true => format!("there is no {what} yet"),
                false => did_you_mean(name.get_ref(), &names),
            };
            self.error(name.span(), title, label);
            0
        })
    }

    fn methods(&mut self, list: &[Spanned<String>]) -> Vec<Method> {
        let mut methods = Vec::new();
        for value in list {
            let known: Vec<&str> = Method::ALL.iter().map(|method| method.name()).collect();
            match Method::ALL.into_iter().find(|method| method.name() == value.get_ref()) {
                Some(method) => methods.push(method),
                None => {
                    let label = did_you_mean(&value.get_ref().to_ascii_uppercase(), &known);
                    self.error(value.span(), format!("`{}` is no method viahop tells apart", value.get_ref()), label);
                }
            }
        }
        methods
    }

    fn domains(&mut self, list: &[Spanned<String>]) -> Vec<String> {
        let mut domains = Vec::new();
        for value in list {
            let text = value.get_ref();
            let (below, name) = text.strip_prefix("*.").map_or(("", &text[..]), |name| ("*.", name));
            let has_port = name.contains(':') && !name.ends_with(']');
            match address::host_port(name).ok().filter(|_| !has_port).map(|parsed| parsed.host) {
                // As it stands in a Request-URI.
                Some(host) if host.contains(':') => domains.push(format!("{below}[{host}]")),
                Some(host) => domains.push(format!("{below}{host}")),
                None => {
                    let label = "a host name, `*.` and a host name, or an address";
                    self.error(value.span(), format!("`{text}` is not a domain"), label);
                }
            }
        }
        domains
    }
}

#[cfg(test)]
mod tests {
    use crate::control::config::problem::Severity;
    use crate::control::config::read::tests::{LISTEN, POOL, load, problems};

    #[test]
    fn rules_may_use_the_names_that_pools_and_listeners_have_by_default() {
        let unnamed = "[[listen]]\naddress = \"tcp:[::1]\"\n[[pool]]\nbackend = [{ uri = \"sip:10.0.0.12\" }]\n";
        let rules = "[[route]]\nlisten = [\"tcp:[::1]:5060\"]\npool = \"pool-2\"\n\
                     [[route]]\nlisten = [\"udp:0.0.0.0:5060\"]\npool = \"default\"\n";
        let config = load(&format!("{LISTEN}{POOL}{unnamed}{rules}")).config;
        let found: Vec<_> = config.routes.iter().map(|rule| (rule.listeners.clone().unwrap(), rule.pool)).collect();
        assert_eq!(found, [(vec![1], 1), (vec![0], 0)]);
    }

    #[test]
    fn domains_are_compared_as_they_stand_in_messages_and_what_never_could_is_refused() {
        let rule = |domains: &str| format!("{LISTEN}{POOL}[[route]]\ndomains = [{domains}]\npool = \"default\"\n");
        let config = load(&rule(r#""Example.NET.", "*.example.net.", "10.0.0.1", "[2001:DB8:0::1]""#)).config;
        let domains = config.routes[0].domains.clone().unwrap();
        assert_eq!(domains, ["example.net", "*.example.net", "10.0.0.1", "[2001:db8::1]"]);
        for wrong in ["", "*", "bob@example.net", "sip:example.net", "example.net:5060", "[::1]:5060", "münchen.de"] {
            let said = problems(&rule(&format!("\"{wrong}\"")));
            let expected = format!("6:12 `{wrong}` is not a domain | a host name, `*.` and a host name, or an address");
            assert_eq!(said, [expected]);
        }
    }

    #[test]
    fn a_rule_that_names_a_listener_as_it_is_miswritten_is_no_second_mistake() {
        let rule = "[[route]]\nlisten = [\"udp:0.0.0.0:506O\"]\npool = \"default\"\n";
        let said = problems(&format!("[[listen]]\naddress = \"udp:0.0.0.0:506O\"\n{POOL}{rule}"));
        assert_eq!(said.len(), 1, "{said:?}");
    }

    #[test]
    fn a_rule_that_hides_others_and_a_priority_without_use_are_warned_about() {
        let text = "[[listen]]\naddress = \"udp:0.0.0.0\"\n[[pool]]\nname = \"a\"\nbackend = [{ uri = \"sip:a\", priority = 1 }]\n\
                    [[route]]\npool = \"a\"\n[[route]]\nmethods = [\"REGISTER\"]\npool = \"a\"\n";
        let loaded = load(text);
        let hides_none = text.replacen("[[route]]", "[[route]]\ndomains = [\"a\"]", 1);
        assert_eq!((loaded.warnings.len(), load(&hides_none).warnings.len()), (2, 1));
        assert!(loaded.warnings.iter().all(|problem| problem.severity == Severity::Warning));
    }

    #[test]
    fn a_rule_that_parts_an_invite_from_its_ack_or_cancel_is_warned_about() {
        let said = |rules: &[(&str, &str)]| {
            let rule =
                |(methods, pool): &(&str, &str)| format!("[[route]]\nmethods = [{methods}]\npool = \"{pool}\"\n");
            let rules: String = rules.iter().map(rule).collect();
            problems(&format!("{LISTEN}{POOL}[[pool]]\nname = \"other\"\nbackend = [{{ uri = \"sip:b\" }}]\n{rules}"))
        };
        let without = said(&[("\"BYE\", \"INVITE\", \"CANCEL\"", "other")]);
        assert!(without[0].starts_with("9:19 this rule takes INVITE without ACK | "), "{without:?}");
        assert!(said(&[("\"INVITE\"", "other")])[0].contains("INVITE without ACK and CANCEL"));
        assert!(said(&[("\"ACK\", \"CANCEL\"", "other"), ("\"INVITE\"", "default")])[0].contains("ACK and CANCEL"));
        let (invite, rest) = ("\"INVITE\"]\ndomains = [\"a\"", "\"ACK\", \"CANCEL\"]\ndomains = [\"a\"");
        assert!(said(&[("\"INVITE\"", "other"), (rest, "other")])[0].contains("without ACK and CANCEL"));
        for all_in_one in [
            &[(invite, "other"), (rest, "other")][..],
            &[(invite, "other"), ("\"ACK\", \"CANCEL\"", "other")],
            &[("\"INVITE\", \"CANCEL\", \"ACK\"", "other")],
            &[("\"INVITE\"", "default")],
            &[("\"INVITE\"", "other"), ("\"ACK\", \"CANCEL\", \"BYE\"", "other")],
        ] {
            assert_eq!(said(all_in_one), [""; 0]);
        }
    }
}
