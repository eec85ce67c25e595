//! Restricts the hosts that images are fetched from: public addresses, and hosts that the settings allow.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Hosts that may have private addresses (`ALLOWED_IMAGE_HOSTS`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedHosts(Vec<String>);

/// A host with a private address that is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{host} has a private address, from which images are not fetched by default: if the host serves images, add {host} to ALLOWED_IMAGE_HOSTS; if it is Label Studio, set LABEL_STUDIO_HOST"
)]
pub struct PrivateHost {
    /// Its name or address.
    pub host: String,
}

impl AllowedHosts {
    /// Parses a list of `host`, `host:port` or `*` (all hosts), separated by commas.
    pub fn parse(list: &str) -> Self {
        let hosts = list.split([',', ' ']).map(|host| {
            let host = host.trim().trim_end_matches('/').to_lowercase();
            let host = host.split("://").last().unwrap_or_default();
            host.to_owned()
        });
        Self(hosts.filter(|host| !host.is_empty()).collect())
    }

    /// Whether the host of a URL is in the list.
    pub fn contains(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else {
            return false;
        };
        let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
        let is_named = |name: &String| name == "*" || name == host || *name == with_port;
        self.0.iter().any(is_named)
    }
}

/// Rejects a URL whose host is a literal private address. Host names are checked when they are resolved.
///
/// # Errors
/// [`PrivateHost`] if the address is private.
pub fn check_literal(url: &Url) -> Result<(), PrivateHost> {
    let host = url.host_str().unwrap_or_default();
    // the URL parser has normalized every notation of an IP address
    let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() else {
        return Ok(());
    };
    match is_public(address) {
        true => Ok(()),
        false => Err(PrivateHost {
            host: host.to_owned(),
        }),
    }
}

/// A DNS resolver that returns public addresses only. The client connects to the addresses that were checked, so a DNS
/// answer that changes later has no effect; each new resolution is checked again.
#[derive(Debug, Clone, Copy)]
pub struct PublicResolver<L = SystemLookup>(L);

/// The DNS lookup behind [`PublicResolver`]; tests replace it.
trait Lookup: Clone + Send + Sync + 'static {
    fn addresses(
        &self,
        host: &str,
    ) -> impl Future<Output = std::io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's resolver.
#[derive(Debug, Clone, Copy)]
pub struct SystemLookup;

impl Lookup for SystemLookup {
    async fn addresses(&self, host: &str) -> std::io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, 0)).await?.collect())
    }
}

#[allow(private_bounds)]
impl<L: Lookup> Resolve for PublicResolver<L> {
    fn resolve(&self, name: Name) -> Resolving {
        let lookup = self.0.clone();
        Box::pin(async move {
            let host = name.as_str();
            let addresses = lookup.addresses(host).await?;
            let (public, private): (Vec<_>, Vec<_>) = addresses
                .into_iter()
                .partition(|a: &SocketAddr| is_public(a.ip()));
            if public.is_empty() && !private.is_empty() {
                let host = host.to_owned();
                return Err(
                    Box::new(PrivateHost { host }) as Box<dyn std::error::Error + Send + Sync>
                );
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

impl PublicResolver {
    /// A shared resolver for a client builder.
    pub fn shared() -> Arc<Self> {
        Arc::new(Self(SystemLookup))
    }
}

/// Whether an address is on the public internet, according to IANA's special-purpose address registries.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || a == 0
        // carrier-grade NAT (100.64.0.0/10), where cloud providers also run internal services
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        // benchmarking (198.18.0.0/15)
        || (a == 198 && (18..20).contains(&b))
        // multicast, reserved and broadcast
        || a >= 224;
    !is_special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // `::/96`, which contains `::` and `::1`; then IPv4 addresses embedded in IPv6 (mapped, NAT64 and 6to4)
        [0, 0, 0, 0, 0, 0, _, _] => false,
        [0, 0, 0, 0, 0, 0xffff, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // IETF protocol assignments (2001::/23, including Teredo), and documentation (2001:db8::/32)
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        // documentation (3fff::/20, RFC 9637)
        [0x3fff, second, ..] if second < 0x1000 => false,
        // only global unicast (2000::/3) is public
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn special_purpose_addresses_are_not_public() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2002:a00:1::",
            "2001:db8::1",
            "3fff::1",
            "3fff:fff::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "3ffe::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn literal_private_addresses_are_rejected_in_every_notation() {
        for url in [
            "http://127.0.0.1/x",
            "http://2130706433/x",
            "http://0x7f.1/x",
            "http://[::ffff:127.0.0.1]/x",
        ] {
            let error = check_literal(&Url::parse(url).unwrap()).unwrap_err();
            assert!(error.to_string().contains("ALLOWED_IMAGE_HOSTS"));
        }
        assert!(check_literal(&Url::parse("http://8.8.8.8/x").unwrap()).is_ok());
        assert!(check_literal(&Url::parse("http://localhost/x").unwrap()).is_ok());
    }

    /// A lookup that answers differently each time, as in a DNS rebinding attack.
    #[derive(Clone, Default)]
    struct ChangingLookup(Arc<AtomicUsize>);

    impl Lookup for ChangingLookup {
        async fn addresses(&self, _: &str) -> std::io::Result<Vec<SocketAddr>> {
            let answers: [&[&str]; 4] = [
                &["8.8.8.8:0", "127.0.0.1:0", "[::1]:0"],
                &["127.0.0.1:0"],
                &["[fe80::1]:0", "10.0.0.1:0"],
                &[],
            ];
            let answer = answers[self.0.fetch_add(1, Ordering::SeqCst) % answers.len()];
            Ok(answer
                .iter()
                .map(|address| address.parse().unwrap())
                .collect())
        }
    }

    #[tokio::test]
    async fn the_client_connects_only_to_addresses_that_were_checked() {
        let resolver = PublicResolver(ChangingLookup::default());
        let resolve_name = async || resolver.resolve("name.example".parse().unwrap()).await;
        let public: Vec<SocketAddr> = resolve_name().await.unwrap().collect();
        assert_eq!(public, ["8.8.8.8:0".parse().unwrap()]);
        for _ in 0..2 {
            let error = resolve_name().await.err().unwrap();
            assert!(error.downcast_ref::<PrivateHost>().is_some(), "{error}");
        }
        assert_eq!(resolve_name().await.unwrap().count(), 0);

        // a client uses the resolver for each connection, and connects to no other address
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let changing = ChangingLookup(Arc::new(AtomicUsize::new(1)));
        let client = crate::outgoing::client().no_proxy();
        let client = client
            .dns_resolver(Arc::new(PublicResolver(changing)))
            .build()
            .unwrap();
        for _ in 0..2 {
            let sent = client
                .get(format!("http://name.example:{port}/"))
                .send()
                .await;
            let text = crate::outgoing::error_chain(&sent.unwrap_err());
            assert!(text.contains("private address"), "{text}");
        }
        let accepted = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
        assert!(
            accepted.is_err(),
            "the client connected to a private address"
        );
    }

    #[test]
    fn a_host_is_allowed_with_or_without_a_port() {
        let allowed = AllowedHosts::parse("minio:9000, http://nas/ , 10.0.0.5");
        let contains = |url: &str| allowed.contains(&Url::parse(url).unwrap());
        assert!(contains("http://minio:9000/x") && contains("https://nas/x"));
        assert!(contains("http://10.0.0.5:81/x") && !contains("http://minio/x"));
        assert!(AllowedHosts::parse("*").contains(&Url::parse("http://a").unwrap()));
    }
}
