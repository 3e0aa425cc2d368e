//! Which links a replica needs. Pure: plan in, list of links out.
//!
//! Kept true: both ends of a link derive it from the same plan, with the same lower and higher
//! index, channel and ring sizes.

use super::ring::RingBytes;
use trireme_shared::limits::{LINK_RING_BYTES, ONE_WAY_BACK_BYTES, STAGE_RING_BYTES};

/// What a link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Between two ranks of one stage.
    Collective = 0,
    /// From rank r of stage s to rank r of stage s + 1.
    Stage = 1,
    /// From the driver to another rank.
    Plan = 2,
    /// From rank 0 of the last stage to the driver.
    Sampled = 3,
}

impl Channel {
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Collective, Self::Stage, Self::Plan, Self::Sampled]
            .into_iter()
            .find(|channel| *channel as u8 == byte)
    }

    /// Ring sizes: small where little flows, so that a link's memory is what it needs.
    pub fn ring_bytes(self) -> RingBytes {
        let (forward, backward) = match self {
            Self::Collective => (LINK_RING_BYTES, LINK_RING_BYTES),
            Self::Stage => (STAGE_RING_BYTES, ONE_WAY_BACK_BYTES),
            Self::Plan => (LINK_RING_BYTES, ONE_WAY_BACK_BYTES),
            Self::Sampled => (ONE_WAY_BACK_BYTES, LINK_RING_BYTES),
        };
        RingBytes { forward, backward }
    }
}

/// One link of a replica; `lower < higher` are indices in the plan. The lower creates or dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkSpec {
    pub lower: u16,
    pub higher: u16,
    pub channel: Channel,
}

/// How a replica is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub tensor_parallel: u16,
    pub pipeline_parallel: u16,
}

impl Shape {
    pub fn ranks(self) -> u16 {
        self.tensor_parallel * self.pipeline_parallel
    }

    pub fn stage_of(self, index: u16) -> u16 {
        index / self.tensor_parallel
    }

    pub fn rank_of(self, index: u16) -> u16 {
        index % self.tensor_parallel
    }

    /// Index of rank 0 of the last stage.
    pub fn sampler(self) -> u16 {
        (self.pipeline_parallel - 1) * self.tensor_parallel
    }

    /// Every link of the replica.
    pub fn links(self) -> Vec<LinkSpec> {
        let mut links = Vec::new();
        let mut add = |lower, higher, channel| {
            links.push(LinkSpec {
                lower,
                higher,
                channel,
            });
        };
        for lower in 0..self.ranks() {
            let stage_end = (self.stage_of(lower) + 1) * self.tensor_parallel;
            for higher in lower + 1..stage_end {
                add(lower, higher, Channel::Collective);
            }
            if stage_end < self.ranks() {
                add(lower, lower + self.tensor_parallel, Channel::Stage);
            }
        }
        for higher in 1..self.ranks() {
            add(0, higher, Channel::Plan);
        }
        if self.sampler() != 0 {
            add(0, self.sampler(), Channel::Sampled);
        }
        links
    }

    /// The links that `index` is an end of.
    pub fn links_of(self, index: u16) -> Vec<LinkSpec> {
        let mut links = self.links();
        links.retain(|link| link.lower == index || link.higher == index);
        links
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(tensor_parallel: u16, pipeline_parallel: u16) -> Vec<LinkSpec> {
        Shape {
            tensor_parallel,
            pipeline_parallel,
        }
        .links()
    }

    #[test]
    fn a_lone_rank_needs_no_link() {
        assert!(links(1, 1).is_empty());
    }

    #[test]
    fn two_by_two_has_every_link_once() {
        let link = |lower, higher, channel| LinkSpec {
            lower,
            higher,
            channel,
        };
        let mut got = links(2, 2);
        got.sort();
        let mut want = vec![
            link(0, 1, Channel::Collective),
            link(2, 3, Channel::Collective),
            link(0, 2, Channel::Stage),
            link(1, 3, Channel::Stage),
            link(0, 1, Channel::Plan),
            link(0, 2, Channel::Plan),
            link(0, 3, Channel::Plan),
            link(0, 2, Channel::Sampled),
        ];
        want.sort();
        assert_eq!(got, want);
    }

    #[test]
    fn channels_survive_their_byte() {
        for byte in 0..4 {
            assert_eq!(Channel::from_byte(byte).unwrap() as u8, byte);
        }
        assert_eq!(Channel::from_byte(4), None);
    }
}
