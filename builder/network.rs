//! Which network steps get, and what they are told about names.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use executor::spec::EtcFiles;
use executor::{Forward, Gateway, Launcher, Network};
use serde::{Deserialize, Serialize};

/// The network of steps that do not ask for a certain one: `--network`, or `network` of the configuration file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StepNetwork {
    /// A private one where it can be had, otherwise the machine's, which is said.
    #[default]
    Default,
    /// A private one, or an error.
    Private,
    /// Loopback only.
    None,
    /// The machine's.
    Host,
}

impl StepNetwork {
    /// What the command line says.
    ///
    /// # Errors
    /// An unknown word, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "" | "default" | "bridge" => Ok(Self::Default),
            "private" => Ok(Self::Private),
            "none" => Ok(Self::None),
            "host" => Ok(Self::Host),
            other => Err(format!("--network {other:?} is none of default, private, none and host")),
        }
    }
}

/// A network as a step gets it.
#[derive(Debug)]
pub struct Connected {
    /// For the process.
    pub network: Network,
    /// Its /etc/resolv.conf; none where the machine has none.
    pub resolv_conf: Option<Vec<u8>>,
    /// Where the step finds the machine.
    pub host_gateway: IpAddr,
    /// Why it is the machine's although a private one was wanted.
    pub instead_of_private: Option<executor::Error>,
}

/// What `host-gateway` of `--add-host` is called until it is known what it means for a step.
pub const HOST_GATEWAY: &str = "host-gateway";

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Finds out what a step is to get.
///
/// # Errors
/// A private network was asked for and cannot be had, or the launcher is gone.
pub async fn connect(launcher: &Launcher, wanted: StepNetwork) -> Result<Connected, executor::Error> {
    let resolv_conf = std::fs::read("/etc/resolv.conf").ok();
    let simple = |network, resolv_conf, instead_of_private| Connected {
        network,
        resolv_conf,
        host_gateway: LOOPBACK,
        instead_of_private,
    };
    match wanted {
        StepNetwork::None => return Ok(simple(Network::None, resolv_conf, None)),
        StepNetwork::Host => return Ok(simple(Network::Host, resolv_conf, None)),
        StepNetwork::Default | StepNetwork::Private => {}
    }
    let subnet = match launcher.private_network().await {
        Ok(subnet) => subnet,
        Err(error @ executor::Error::Network(_)) if wanted == StepNetwork::Default => {
            return Ok(simple(Network::Host, resolv_conf, Some(error)));
        }
        Err(error) => return Err(error),
    };
    let text = String::from_utf8_lossy(resolv_conf.as_deref().unwrap_or_default()).into_owned();
    let (resolv_conf, mut forwards) = executor::resolv_conf(&text, &subnet);
    let inside = IpAddr::V4(subnet.gateway());
    forwards.extend(own_address().map(|outside| Forward { inside, port: None, outside }));
    Ok(Connected {
        network: Network::Private(Gateway { forwards }),
        resolv_conf: Some(resolv_conf.into_bytes()),
        host_gateway: inside,
        instead_of_private: None,
    })
}

/// What a step is told about names: the machine's resolvers, itself, and what `--add-host` says.
#[must_use]
pub fn etc_files(connected: &Connected, extra_hosts: &[(String, String)], hostname: &str) -> EtcFiles {
    let mut hosts = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (name, address) in extra_hosts {
        let gateway = connected.host_gateway.to_string();
        let address = if address == HOST_GATEWAY { &gateway } else { address };
        hosts.push_str(&format!("{address}\t{name}\n"));
    }
    EtcFiles { resolv_conf: connected.resolv_conf.clone(), hosts: Some(hosts.into_bytes()), hostname: None }
}

/// The machine's address towards the world. Services that listen on it, or on all addresses, are what `host-gateway` leads to;
/// those on loopback are not. The kernel is asked for the way to an address; nothing is sent.
fn own_address() -> Option<IpAddr> {
    const SOMEBODY: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 1), 9);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(SOMEBODY).ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_gets_its_address_when_it_is_known() {
        let connected = Connected {
            network: Network::None,
            resolv_conf: None,
            host_gateway: "10.255.255.225".parse().expect("address"),
            instead_of_private: None,
        };
        let extra = [("db", "192.0.2.7"), ("me", HOST_GATEWAY)].map(|(name, to)| (name.to_owned(), to.to_owned()));
        let hosts = etc_files(&connected, &extra, "box").hosts.expect("always there");
        let hosts = String::from_utf8(hosts).expect("text");
        assert!(hosts.ends_with("192.0.2.7\tdb\n10.255.255.225\tme\n"), "{hosts}");
        assert!(hosts.starts_with("127.0.0.1\tlocalhost box\n"), "{hosts}");
    }

    #[test]
    fn modes_are_known_by_dockers_words_too() {
        assert_eq!(StepNetwork::parse("bridge"), Ok(StepNetwork::Default));
        assert_eq!(StepNetwork::parse("private"), Ok(StepNetwork::Private));
        assert!(StepNetwork::parse("mine").is_err());
    }
}
