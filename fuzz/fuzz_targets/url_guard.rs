//! A URL that the guard accepts has a public address or a host name. No notation of an address is treated as a host name,
//! and no address of IANA's ranges that are not globally reachable is accepted, nor an IPv6 address that contains one.

#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use groundling::media::guard::check_literal;
use libfuzzer_sys::fuzz_target;
use url::{Host, Url};

fuzz_target!(|input: (u8, u128, &str)| {
    let (kind, number, text) = input;
    let v4 = Ipv4Addr::from(number as u32);
    let host = match kind % 6 {
        0 => v4.to_string(),
        1 => format!("{}", number as u32),
        2 => format!(
            "0x{:x}.0{:o}.{}",
            number as u8,
            (number >> 8) as u8,
            (number >> 16) as u16
        ),
        3 => format!("[{}]", Ipv6Addr::from(number)),
        4 => format!("[::ffff:{v4}]"),
        _ => text.to_owned(),
    };
    for scheme in ["http", "https"] {
        let Ok(url) = Url::parse(&format!("{scheme}://{host}/x.png")) else {
            continue;
        };
        if check_literal(&url).is_err() {
            continue;
        }
        match url.host().expect("an http URL has a host") {
            Host::Ipv4(address) => assert!(is_reachable_v4(address), "{url}"),
            Host::Ipv6(address) => assert!(is_reachable_v6(address), "{url}"),
            Host::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(name);
                assert!(name.parse::<IpAddr>().is_err(), "{url}");
                let is_number = |part: &str| {
                    let hex = part.strip_prefix("0x").unwrap_or("-");
                    hex.bytes().all(|b| b.is_ascii_hexdigit())
                        || !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit())
                };
                // inet_aton of C would parse this as an address
                assert!(!name.split('.').all(is_number), "{url}");
            }
        }
    }
});

/// The ranges of IANA's special-purpose registry for IPv4 that are not globally reachable, and multicast.
const V4: [([u8; 4], u32); 15] = [
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 4),
    ([240, 0, 0, 0], 4),
    ([255, 255, 255, 255], 32),
];

/// The same for IPv6, and ranges with an embedded IPv4 address that no public translator serves.
const V6: [([u16; 8], u32); 12] = [
    ([0, 0, 0, 0, 0, 0, 0, 0], 96),
    ([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48),
    ([0x100, 0, 0, 0, 0, 0, 0, 0], 64),
    ([0x100, 0, 0, 1, 0, 0, 0, 0], 64),
    ([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
    ([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
    ([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    ([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16),
    ([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7),
    ([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10),
    ([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10),
    ([0xff00, 0, 0, 0, 0, 0, 0, 0], 8),
];

fn is_reachable_v4(address: Ipv4Addr) -> bool {
    let number = u32::from(address);
    let is_in = |(start, bits): &([u8; 4], u32)| {
        number >> (32 - bits) == u32::from(Ipv4Addr::from(*start)) >> (32 - bits)
    };
    !V4.iter().any(is_in)
}

fn is_reachable_v6(address: Ipv6Addr) -> bool {
    let number = u128::from(address);
    let is_in = |(start, bits): &([u16; 8], u32)| {
        number >> (128 - bits) == u128::from(Ipv6Addr::from(*start)) >> (128 - bits)
    };
    let last = Ipv4Addr::from(number as u32);
    match address.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_reachable_v4(last),
        [0x2002, ..] => is_reachable_v4(Ipv4Addr::from((number >> 80) as u32)),
        _ => !V6.iter().any(is_in),
    }
}
