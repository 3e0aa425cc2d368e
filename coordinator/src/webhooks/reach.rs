//! Where events may be sent. A tenant names the address, and our machines stand inside of networks that
//! it is not in: a name that leads there must lead nowhere.
//!
//! Keeps true: no connection is made but to an address that was looked at after its name was resolved
//! (`courier`), so that a name which resolves otherwise the next time gains nothing.

use axum::http::Uri;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use trireme_shared::limits;

/// Which addresses a coordinator sends events to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Public ones, by https.
    #[default]
    Public,
    /// Private ones too, and this machine by plain http: for tests, and receivers on one's own network.
    Private,
}

impl Reach {
    /// Refuses, in words, a webhook's address that cannot be meant well, as far as it shows.
    pub fn check(self, url: &str) -> Result<(), &'static str> {
        if url.len() > limits::WEBHOOK_URL_BYTES_MAX {
            return Err("it is too long");
        }
        let uri: Uri = url.parse().map_err(|_| "it is not an address")?;
        let plain = match uri.scheme_str() {
            Some("https") => false,
            Some("http") if self == Self::Private => true,
            _ => return Err("it must begin with https://"),
        };
        let authority = uri.authority().map(|authority| authority.as_str());
        if authority.is_none_or(|authority| authority.contains('@')) || url.contains('#') {
            return Err("it must name a host, and no user and no fragment");
        }
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err("it must name a host");
        }
        let number = host.trim_start_matches('[').trim_end_matches(']').parse();
        match number {
            Ok(number) if !self.allows(number, plain) => Err("it is not a public address"),
            Err(_) if plain && host != "localhost" => {
                Err("only this machine is reached by plain http: use https://")
            }
            _ => Ok(()),
        }
    }

    /// Whether events may go there.
    pub fn allows(self, address: IpAddr, plain: bool) -> bool {
        match self {
            Self::Public => !plain && is_public(address),
            Self::Private => !plain || address.to_canonical().is_loopback(),
        }
    }
}

/// Whether an address is one of the public internet's, for one receiver: by the registries of
/// special-purpose addresses (RFC 6890 and what IANA has added since).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    const NOT: [(Ipv4Addr, u32); 15] = [
        (Ipv4Addr::new(0, 0, 0, 0), 8),
        (Ipv4Addr::new(10, 0, 0, 0), 8),
        // Carriers' own (CGNAT).
        (Ipv4Addr::new(100, 64, 0, 0), 10),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        // Link-local: clouds answer there about the machine itself.
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(172, 16, 0, 0), 12),
        (Ipv4Addr::new(192, 0, 0, 0), 24),
        // Three networks of documents.
        (Ipv4Addr::new(192, 0, 2, 0), 24),
        (Ipv4Addr::new(198, 51, 100, 0), 24),
        (Ipv4Addr::new(203, 0, 113, 0), 24),
        (Ipv4Addr::new(192, 88, 99, 0), 24),
        (Ipv4Addr::new(192, 168, 0, 0), 16),
        (Ipv4Addr::new(198, 18, 0, 0), 15),
        // Multicast; reserved, and broadcast.
        (Ipv4Addr::new(224, 0, 0, 0), 4),
        (Ipv4Addr::new(240, 0, 0, 0), 4),
    ];
    let within = |(net, bits): &(Ipv4Addr, u32)| {
        (address.to_bits() ^ net.to_bits()).leading_zeros() >= *bits
    };
    !NOT.iter().any(within)
}

/// Global unicast is 2000::/3; what embeds an IPv4 address (mapped, translated, 6to4, Teredo) is not
/// reached by it.
fn is_public_v6(address: Ipv6Addr) -> bool {
    const NOT: [(Ipv6Addr, u32); 4] = [
        // Protocols' own, Teredo among them.
        (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
        (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
        (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
        (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
    ];
    let within = |(net, bits): &(Ipv6Addr, u32)| {
        (address.to_bits() ^ net.to_bits()).leading_zeros() >= *bits
    };
    let unicast = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
    within(&unicast) && !NOT.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2001:4860:4860::8888",
            "2003::1",
            "3ffe::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.8",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:1.1.1.1",
            "::7f00:1",
            "64:ff9b::a00:1",
            "100::1",
            "2001::1",
            "2001:1ff::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn addresses_are_refused_in_words() {
        for good in [
            "https://example.com",
            "https://example.com:8443/a/b?c=d",
            "https://1.1.1.1/hook",
            "https://[2606:4700::1111]/hook",
        ] {
            assert_eq!(Reach::Public.check(good), Ok(()), "{good}");
        }
        let long = format!("https://example.com/{}", "a".repeat(2_100));
        for bad in [
            "",
            "example.com",
            "http://example.com",
            "ftp://example.com",
            "https://",
            "https:///path",
            "https://user@example.com",
            "https://example.com/#part",
            "https://exa mple.com",
            "https://10.0.0.1/",
            "https://127.0.0.1:8080/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "http://localhost/",
            &long,
        ] {
            assert!(Reach::Public.check(bad).is_err(), "{bad}");
        }
        for here in [
            "http://localhost:80/",
            "http://127.0.0.1/",
            "http://[::1]:9/x",
        ] {
            assert_eq!(Reach::Private.check(here), Ok(()), "{here}");
        }
        for there in ["http://10.0.0.1/", "http://example.com/", "http://1.1.1.1/"] {
            assert!(Reach::Private.check(there).is_err(), "{there}");
        }
        assert_eq!(Reach::Private.check("https://10.0.0.1/"), Ok(()));
    }

    #[test]
    fn plain_http_reaches_this_machine_only_and_only_where_that_is_allowed() {
        let of = |text: &str| text.parse::<IpAddr>().unwrap();
        for (reach, address, plain, allowed) in [
            (Reach::Public, "1.1.1.1", false, true),
            (Reach::Public, "1.1.1.1", true, false),
            (Reach::Public, "127.0.0.1", false, false),
            (Reach::Private, "127.0.0.1", true, true),
            (Reach::Private, "::ffff:127.0.0.1", true, true),
            (Reach::Private, "10.0.0.1", true, false),
            (Reach::Private, "10.0.0.1", false, true),
        ] {
            assert_eq!(
                reach.allows(of(address), plain),
                allowed,
                "{address} {plain}"
            );
        }
    }
}
