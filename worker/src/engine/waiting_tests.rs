//! The waiting room before a pretended driver: a few places to run in, sequences of random lengths.

use super::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

const PLACES: usize = 4;
const LONGEST: usize = 60;

struct Driver {
    room: WaitingRoom,
    random: ChaCha8Rng,
    /// (sequence, tenant, tokens left).
    running: Vec<(SequenceId, TenantId, usize)>,
    of: BTreeMap<SequenceId, TenantId>,
    last: u64,
    /// Tokens that each tenant got.
    got: BTreeMap<TenantId, u64>,
}

impl Driver {
    fn new(seed: u64) -> Self {
        Self {
            room: WaitingRoom::new(1_000),
            random: ChaCha8Rng::seed_from_u64(seed),
            running: Vec::new(),
            of: BTreeMap::new(),
            last: 0,
            got: BTreeMap::new(),
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.next_u32() as usize % n
    }

    fn arrive(&mut self, tenant: u32, weight: u32) -> SequenceId {
        self.last += 1;
        let id = SequenceId(self.last);
        self.of.insert(id, TenantId(tenant));
        let refused = self
            .room
            .arrive(id, TenantId(tenant), weight, Priority::Normal);
        assert_eq!(refused, None);
        id
    }

    /// Fills the places, then serves every running sequence some tokens. Gives who began.
    fn step(&mut self) -> Vec<SequenceId> {
        let mut began = Vec::new();
        while self.running.len() < PLACES
            && let Some(id) = self.room.next(|_| true)
        {
            let of = self.of[&id];
            self.room.begin(id, of);
            let length = 1 + self.below(LONGEST);
            self.running.push((id, of, length));
            began.push(id);
        }
        for i in 0..self.running.len() {
            let most = 1 + self.below(10);
            let (_, of, left) = &mut self.running[i];
            let tokens = most.min(*left);
            *left -= tokens;
            self.room.charge(*of, tokens);
            *self.got.entry(*of).or_default() += tokens as u64;
        }
        for (id, of, _) in self.running.extract_if(.., |(_, _, left)| *left == 0) {
            self.room.leave(id, of);
        }
        began
    }

    fn got(&self, tenant: u32) -> u64 {
        self.got.get(&TenantId(tenant)).copied().unwrap_or(0)
    }

    fn waits(&self, tenant: u32) -> usize {
        let tenant = self.room.tenants.get(&TenantId(tenant));
        tenant.map_or(0, |t| t.waiting.len())
    }
}

/// Two tenants that always wait, others that come and go: the two never differ, in tokens for their
/// weight and over any interval, by more than the bound of the module's documentation.
fn two_backlogged(seed: u64) {
    let mut driver = Driver::new(seed);
    let weights = [1 + driver.below(5) as u32, 1 + driver.below(5) as u32];
    let bound: f64 = weights
        .iter()
        .map(|w| (PLACES * LONGEST) as f64 / f64::from(*w))
        .sum();
    let (mut lowest, mut highest) = (f64::MAX, f64::MIN);
    for _ in 0..3_000 {
        for (tenant, weight) in [(1, weights[0]), (2, weights[1])] {
            // One floods, the other has just enough to wait all the time.
            while driver.waits(tenant) < if tenant == 1 { 40 } else { PLACES + 1 } {
                driver.arrive(tenant, weight);
            }
        }
        if driver.below(6) == 0 {
            let other = 3 + driver.below(4) as u32;
            driver.arrive(other, 1 + other % 3);
        }
        driver.step();
        let ahead = driver.got(1) as f64 / f64::from(weights[0])
            - driver.got(2) as f64 / f64::from(weights[1]);
        (lowest, highest) = (lowest.min(ahead), highest.max(ahead));
    }
    assert!(
        highest - lowest <= bound,
        "apart by {} of {bound}: replay with two_backlogged({seed})",
        highest - lowest
    );
    assert!(driver.got(1) + driver.got(2) > 20_000, "they were served");
}

#[test]
fn backlogged_tenants_are_served_by_their_weights() {
    for seed in 0..200 {
        two_backlogged(seed);
    }
}

#[test]
fn no_place_stays_empty_while_somebody_waits() {
    let mut driver = Driver::new(1);
    driver.arrive(2, 1);
    driver.step();
    // Alone by now or before long, whatever it has had.
    for _ in 0..500 {
        driver.arrive(1, 1);
    }
    for waiting in (0..500).rev() {
        let id = driver.room.next(|_| true).unwrap();
        driver.room.begin(id, TenantId(1));
        driver.room.charge(TenantId(1), LONGEST);
        driver.room.leave(id, TenantId(1));
        assert_eq!(driver.waits(1), waiting);
    }
}

#[test]
fn in_its_turn_a_tenants_oldest_goes_first() {
    let mut room = WaitingRoom::new(10);
    for (id, tenant) in [(1, 1), (2, 1), (3, 2), (4, 1), (5, 2)] {
        room.arrive(SequenceId(id), TenantId(tenant), 1, Priority::Normal);
    }
    let mut order = Vec::new();
    while let Some(id) = room.next(|_| true) {
        let of = TenantId(if [3, 5].contains(&id.0) { 2 } else { 1 });
        room.begin(id, of);
        room.charge(of, 10);
        order.push(id.0);
    }
    assert_eq!(order, [1, 3, 2, 5, 4]);
}

#[test]
fn idle_time_is_no_credit_and_does_not_cost_the_next_turn() {
    let mut driver = Driver::new(7);
    for _ in 0..900 {
        driver.arrive(1, 1);
    }
    for _ in 0..200 {
        driver.step();
    }
    assert!(driver.got(1) > 1_000);
    // Another comes, with much to do: its first is the next to begin.
    let first = driver.arrive(2, 1);
    for _ in 0..80 {
        driver.arrive(2, 1);
    }
    let before = [driver.got(1), driver.got(2)];
    let began = loop {
        let began = driver.step();
        if !began.is_empty() {
            break began;
        }
    };
    assert_eq!(began[0], first);
    while driver.waits(2) > 1 {
        driver.step();
    }
    // No burst: the one that was here all the time got as much in the meantime.
    let got = [driver.got(1) - before[0], driver.got(2) - before[1]];
    let bound = 2 * PLACES * LONGEST;
    assert!(got[0].abs_diff(got[1]) <= bound as u64, "{got:?}");
    assert!(got[1] > 1_000, "{got:?}");
}

#[test]
fn leaving_and_coming_back_is_no_way_to_get_ahead() {
    let mut room = WaitingRoom::new(10);
    let (honest, hopping) = (TenantId(1), TenantId(2));
    let mut id = 0;
    let mut got = [0, 0];
    let mut arrive = |room: &mut WaitingRoom, of| {
        id += 1;
        room.arrive(SequenceId(id), of, 1, Priority::Normal);
    };
    arrive(&mut room, honest);
    for _ in 0..2_000 {
        // It asks for much, and has nothing here in between.
        if room.tenants.get(&hopping).is_none_or(|t| t.here == 0) {
            arrive(&mut room, hopping);
        }
        let id = room.next(|_| true).unwrap();
        let place = (Reverse(Priority::Normal), id);
        let is_hopping = room.tenants[&hopping].waiting.contains(&place);
        let (of, tokens) = if is_hopping {
            (hopping, 500)
        } else {
            (honest, 10)
        };
        room.begin(id, of);
        room.charge(of, tokens);
        got[usize::from(is_hopping)] += tokens;
        if !is_hopping {
            arrive(&mut room, honest);
        }
        room.leave(id, of);
    }
    assert!(got[0].abs_diff(got[1]) <= 510, "{got:?}");
}

#[test]
fn counters_go_with_their_tenants() {
    let mut driver = Driver::new(3);
    // A backlog that lasts, and many tenants that pass by.
    for passing in 10..3_000 {
        while driver.waits(1) < 3 {
            driver.arrive(1, 1);
        }
        driver.arrive(passing, 1);
        for _ in 0..3 {
            driver.step();
        }
        let kept = driver.room.tenants.len();
        assert!(kept <= driver.room.len() + PLACES + limits::TENANTS_AHEAD_MAX);
    }
    while driver.room.len() > 0 || !driver.running.is_empty() {
        driver.step();
    }
    assert!(driver.room.tenants.is_empty(), "nobody is here");
}

#[test]
fn of_too_many_that_are_ahead_the_one_that_is_least_is_forgotten() {
    let mut room = WaitingRoom::new(10);
    let most = limits::TENANTS_AHEAD_MAX as u32;
    room.arrive(SequenceId(0), TenantId(0), 1, Priority::Normal);
    for n in 1..=most + 1 {
        let (id, of) = (SequenceId(n.into()), TenantId(n));
        room.arrive(id, of, 1, Priority::Normal);
        room.begin(id, of);
        room.charge(of, (5 + n) as usize);
        room.leave(id, of);
    }
    assert_eq!(room.tenants.len() as u32, 1 + most);
    assert!(!room.tenants.contains_key(&TenantId(1)));
    // Once those who wait have had as much, nothing is kept.
    room.charge(TenantId(0), 1 << 20);
    room.leave(SequenceId(0), TenantId(0));
    assert!(room.tenants.is_empty());
}

#[test]
fn preempted_sequences_go_before_all_others() {
    let mut room = WaitingRoom::new(10);
    for id in 1..=3 {
        room.arrive(SequenceId(id), TenantId(1), 1, Priority::Normal);
        room.begin(SequenceId(id), TenantId(1));
    }
    room.charge(TenantId(1), 1_000);
    room.arrive(SequenceId(4), TenantId(2), 1, Priority::Normal);
    for id in [3, 2] {
        room.preempted(SequenceId(id));
    }
    assert_eq!(room.len(), 3);
    assert_eq!(room.next(|_| true), Some(SequenceId(2)));
    room.begin(SequenceId(2), TenantId(1));
    // The next one's client is behind.
    assert_eq!(room.next(|id| id != SequenceId(3)), Some(SequenceId(4)));
    room.leave(SequenceId(3), TenantId(1));
    assert_eq!(room.next(|_| true), Some(SequenceId(4)));
}

#[test]
fn a_flood_turns_itself_away() {
    let mut room = WaitingRoom::new(100);
    let mut id = 0;
    let mut arrive = |room: &mut WaitingRoom, of: u32, weight| {
        id += 1;
        let refused = room.arrive(SequenceId(id), TenantId(of), weight, Priority::Normal);
        (SequenceId(id), refused)
    };
    for _ in 0..100 {
        assert_eq!(arrive(&mut room, 1, 1).1, None);
    }
    let (own, refused) = arrive(&mut room, 1, 1);
    assert_eq!(refused, Some(own), "of its own flood the newest");
    // Others get in, one for one, until each has its share.
    for n in 0..75 {
        let (_, refused) = arrive(&mut room, 2, 3);
        assert_eq!(refused, Some(SequenceId(100 - n)));
    }
    let (own, refused) = arrive(&mut room, 2, 3);
    assert_eq!(refused, Some(own), "75 for 3 is as much as 25 for 1");
    assert_eq!(arrive(&mut room, 3, 1).1, Some(SequenceId(25)));
    assert_eq!(room.len(), 100);
}

#[test]
fn of_one_tenant_the_higher_priority_is_next_and_the_lowest_is_refused() {
    use Priority::{High, Low, Normal};
    let mut room = WaitingRoom::new(4);
    let of = [TenantId(1), TenantId(2)];
    for (id, priority) in [(1, Low), (2, Normal), (3, High), (4, High)] {
        assert_eq!(room.arrive(SequenceId(id), of[0], 1, priority), None);
    }
    assert_eq!(
        room.arrive(SequenceId(5), of[0], 1, High),
        Some(SequenceId(1))
    );
    let next = room.arrive(SequenceId(6), of[0], 1, Low);
    assert_eq!(next, Some(SequenceId(6)), "it is the lowest itself");
    assert_eq!(
        room.arrive(SequenceId(7), of[1], 1, Low),
        Some(SequenceId(2))
    );
    let mut order = Vec::new();
    while let Some(id) = room.next(|_| true) {
        let of = of[usize::from(id.0 == 7)];
        room.begin(id, of);
        room.charge(of, 10);
        order.push(id.0);
    }
    // The two tenants take turns.
    assert_eq!(order, [3, 7, 4, 5]);
    assert_eq!(room.len(), 0);
}
