//! Rate limit for wrong admin secrets.
//!
//! Only wrong secrets are counted, so the holder of the right one is never locked out: not by an attacker's flood, not
//! by a reverse proxy behind which all clients have one address. The limit only keeps a guesser from flooding the log;
//! the secret's length is what keeps them out.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Wrong secrets from one address: ten at once, then ten a minute. A person mistypes three times; a script that retries
/// with an old secret notices within seconds.
const PEER: Rate = Rate { burst: 10.0, per_second: 10.0 / 60.0 };
/// From all addresses together, so that a thousand addresses do not get around the limit.
const OVERALL: Rate = Rate { burst: 100.0, per_second: 100.0 / 60.0 };
/// Addresses that are remembered. Beyond them, only the overall rate counts.
const MAX_PEERS: usize = 10_000;

#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: f64,
    per_second: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: rate.burst, at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * rate.per_second;
        *self = Self { tokens: (self.tokens + gained).min(rate.burst), at: now };
    }

    /// How long until there is one token.
    fn wait(&self, rate: Rate) -> Duration {
        Duration::from_secs_f64(((1.0 - self.tokens) / rate.per_second).max(0.0))
    }
}

/// Recent wrong secrets.
#[derive(Debug)]
pub(super) struct Guesses(Mutex<State>);

#[derive(Debug)]
struct State {
    overall: Bucket,
    peers: HashMap<IpAddr, Bucket>,
}

impl Guesses {
    pub(super) fn new() -> Self {
        let overall = Bucket::full(OVERALL, Instant::now());
        Self(Mutex::new(State { overall, peers: HashMap::new() }))
    }

    /// `peer` sent a wrong secret. `Some`: it did so too often, and should wait this long.
    pub(super) fn wrong(&self, peer: Option<IpAddr>) -> Option<Duration> {
        self.wrong_at(peer, Instant::now())
    }

    fn wrong_at(&self, peer: Option<IpAddr>, now: Instant) -> Option<Duration> {
        let State { overall, peers } = &mut *self.0.lock();
        overall.refill(OVERALL, now);
        let peer = peer.map(network);
        if peer.is_some_and(|peer| !peers.contains_key(&peer)) && peers.len() >= MAX_PEERS {
            // A full bucket is the same as none: forget it.
            peers.retain(|_, bucket| {
                bucket.refill(PEER, now);
                bucket.tokens < PEER.burst
            });
        }
        let has_room = peers.len() < MAX_PEERS;
        let mut mine = peer.and_then(|peer| match peers.get_mut(&peer) {
            None if has_room => Some(peers.entry(peer).or_insert_with(|| Bucket::full(PEER, now))),
            _ => peers.get_mut(&peer),
        });
        if let Some(bucket) = &mut mine {
            bucket.refill(PEER, now);
            if bucket.tokens < 1.0 {
                return Some(bucket.wait(PEER));
            }
        }
        if overall.tokens < 1.0 {
            return Some(overall.wait(OVERALL));
        }
        overall.tokens -= 1.0;
        if let Some(bucket) = mine {
            bucket.tokens -= 1.0;
        }
        None
    }
}

/// The network that counts as one peer: an IPv4 address, or an IPv6 /64, which is the least that one customer gets (RFC
/// 6177).
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => {
            let bits = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(bits))
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u32) -> Option<IpAddr> {
        Some(IpAddr::V4(n.into()))
    }

    #[test]
    fn one_address_waits_and_the_others_do_not() {
        let (guesses, now) = (Guesses::new(), Instant::now());
        for _ in 0..10 {
            assert_eq!(guesses.wrong_at(peer(1), now), None);
        }
        let wait = guesses.wrong_at(peer(1), now).expect("too many");
        assert!(wait <= Duration::from_secs(6), "{wait:?}");
        assert_eq!(guesses.wrong_at(peer(2), now), None);
        assert_eq!(guesses.wrong_at(peer(1), now + wait), None, "waiting as long as told is enough");
        assert!(guesses.wrong_at(peer(1), now + wait).is_some());
    }

    #[test]
    fn many_addresses_are_no_way_around() {
        let (guesses, now) = (Guesses::new(), Instant::now());
        let let_through = (0..1000).filter(|n| guesses.wrong_at(peer(*n), now).is_none()).count();
        assert_eq!(let_through, 100);
        // A peer over its own limit does not use up the overall one.
        let later = now + Duration::from_secs(3600);
        let let_through = (0..1000).filter(|_| guesses.wrong_at(peer(1), later).is_none()).count();
        assert_eq!(let_through, 10);
        assert_eq!(guesses.wrong_at(peer(2), later), None);
    }

    #[test]
    fn a_flood_of_addresses_takes_no_memory() {
        let (guesses, now) = (Guesses::new(), Instant::now());
        for n in 0..30_000 {
            guesses.wrong_at(peer(n), now + Duration::from_millis(u64::from(n)));
        }
        assert!(guesses.0.lock().peers.len() <= MAX_PEERS);
    }

    #[test]
    fn a_customer_has_one_ipv6_network() {
        let of = |text: &str| network(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2:3:4:5:6"), of("2001:db8:1:2::1"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
