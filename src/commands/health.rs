//! `groundling health`: asks a server on this machine, for the health check of a container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};

use super::{print_result, setup};
use crate::config::HealthArgs;
use crate::outgoing::{self, error_chain};

/// How long the server may take to answer.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Prints the server's answer.
///
/// # Errors
/// If the server does not run, or its models are not loaded.
pub fn run(args: &HealthArgs) -> anyhow::Result<()> {
    let address = SocketAddr::new(reachable(args.bind_address), args.port);
    let path = if args.alive { "health" } else { "ready" };
    let url = format!("http://{address}/{path}");
    setup::runtime()?.block_on(ask(&url, args.alive))
}

/// The address at which this machine reaches a server that listens on `bound`.
fn reachable(bound: IpAddr) -> IpAddr {
    match bound {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

/// Asks, and prints the answer. If only a sign of life is wanted, any answer is one: with basic authentication it is 401.
async fn ask(url: &str, is_any_enough: bool) -> anyhow::Result<()> {
    let client = outgoing::client().no_proxy().timeout(TIMEOUT).build()?;
    let response = client.get(url).send().await;
    let response = response
        .map_err(|error| anyhow::anyhow!(error_chain(&error.without_url())))
        .with_context(|| format!("no server answers at {url}"))?;
    let status = response.status();
    let body = outgoing::read_body(response, 64 << 10).await?;
    let body = String::from_utf8_lossy(&body);
    if !status.is_success() && !is_any_enough {
        bail!("{url} answered {status}: {body}");
    }
    print_result(body);
    Ok(())
}
