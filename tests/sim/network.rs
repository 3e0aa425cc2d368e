//! The network between coordinators: which messages get through, how late, and how often.
//!
//! Every message has its own delay, so that later ones overtake earlier ones; QUIC would keep them in
//! order, which is a special case of this.

use crate::chance::Chance;
use std::collections::BTreeSet;
use std::time::Duration;
use trireme_coordinator::raft::types::MemberId;

/// How bad it is at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Lost and doubled messages of a thousand.
    pub lost: u64,
    pub doubled: u64,
    /// Delay of most messages, microseconds.
    pub delay: (u64, u64),
    /// Messages of a thousand that take up to `late_us` instead.
    pub late: u64,
    pub late_us: u64,
}

pub const CALM: Weather = Weather {
    lost: 0,
    doubled: 0,
    delay: (100, 1_000),
    late: 0,
    late_us: 1_000,
};

impl Weather {
    pub fn draw(chance: &mut Chance) -> Self {
        match chance.below(6) {
            // Mostly a good network: much happens only on one.
            0..=1 => CALM,
            2 => Self {
                lost: chance.range(1, 50),
                doubled: chance.range(0, 50),
                ..CALM
            },
            3 => Self {
                lost: chance.range(50, 300),
                doubled: chance.range(0, 200),
                delay: (100, chance.range(1_000, 20_000)),
                late: 50,
                late_us: 400_000,
            },
            4 => Self {
                delay: (100, chance.range(10_000, 120_000)),
                doubled: chance.range(0, 100),
                ..CALM
            },
            _ => Self::late(chance),
        }
    }

    /// Old messages turn up much later, after elections and restarts.
    pub fn late(chance: &mut Chance) -> Self {
        Self {
            doubled: 150,
            late: chance.range(20, 200),
            late_us: chance.range(500_000, 4_000_000),
            ..CALM
        }
    }
}

pub struct Network {
    pub weather: Weather,
    /// Pairs (from, to) that do not hear each other.
    cut: BTreeSet<(MemberId, MemberId)>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            weather: CALM,
            cut: BTreeSet::new(),
        }
    }
}

impl Network {
    /// Delays after which the copies of one message arrive.
    pub fn carry(&self, chance: &mut Chance, from: MemberId, to: MemberId) -> Vec<Duration> {
        if self.is_cut(from, to) || chance.happens(self.weather.lost) {
            return Vec::new();
        }
        let mut copies = vec![self.delay(chance)];
        if self.weather.doubled > 0 && chance.happens(self.weather.doubled) {
            copies.push(self.delay(chance));
        }
        copies
    }

    fn delay(&self, chance: &mut Chance) -> Duration {
        let weather = &self.weather;
        if weather.late > 0 && chance.happens(weather.late) {
            return chance.micros(weather.delay.1, weather.late_us.max(weather.delay.1));
        }
        chance.micros(weather.delay.0, weather.delay.1)
    }

    pub fn is_cut(&self, from: MemberId, to: MemberId) -> bool {
        self.cut.contains(&(from, to))
    }

    /// What `from` says does not reach `to`.
    pub fn cut(&mut self, from: MemberId, to: MemberId) {
        self.cut.insert((from, to));
    }

    /// Nobody of `some` and nobody else hear each other.
    pub fn split(&mut self, all: &[MemberId], some: &[MemberId]) {
        for a in all.iter().filter(|a| some.contains(a)) {
            for b in all.iter().filter(|b| !some.contains(b)) {
                self.cut(*a, *b);
                self.cut(*b, *a);
            }
        }
    }

    pub fn heal(&mut self) {
        self.cut.clear();
    }
}
