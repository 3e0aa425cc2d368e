//! Whether a state has come to what the model says.

use super::{Model, Told};
use std::collections::BTreeMap;
use trireme_coordinator::state::{Account, Counts, State};
use trireme_shared::ids::{GatewayLife, RequestNumber, SettlementSeq};

impl Model {
    /// Whether the state has come to the same.
    pub fn agrees(&self, state: &State) -> Told {
        let differ = |what: &str, is: String, should: String| {
            Err(format!("{what}: {is} by the state, {should} by the model"))
        };
        let mut accounts: BTreeMap<Account, i128> = state
            .balances()
            .map(|(account, balance)| (account.clone(), i128::from(balance.0)))
            .collect();
        accounts.retain(|_, balance| *balance != 0);
        let mut should = self.balances.clone();
        should.retain(|_, balance| *balance != 0);
        if accounts != should {
            return differ("balances", format!("{accounts:?}"), format!("{should:?}"));
        }
        if accounts.values().sum::<i128>() != 0 {
            return Err("the balances do not sum to zero".into());
        }
        let subjects = self.purses.keys().copied();
        for subject in subjects {
            for life in self.lives.keys() {
                let (is, key) = (state.lease(subject, *life), (subject, *life));
                let should = self.leases.get(&key).copied().unwrap_or_default();
                if is != should {
                    let what = format!("lease of {subject:?} to {life}");
                    return differ(&what, format!("{is:?}"), format!("{should:?}"));
                }
            }
            let (is, should) = (state.lent(subject), self.lent(subject));
            if (is.money, is.slots) != (should.money, should.slots) {
                let what = format!("all that is lent of {subject:?}");
                return differ(&what, format!("{is:?}"), format!("{should:?}"));
            }
        }
        let lives: Vec<GatewayLife> = state.gateways().map(|gateway| gateway.life).collect();
        if !lives.iter().eq(self.lives.keys()) {
            return differ("lives", format!("{lives:?}"), format!("{:?}", self.lives));
        }
        for open in state.open_requests() {
            let id = &open.progress.request;
            let known = self.open.get(id).map(|(life, told)| (*life, told.counts));
            if known != Some((open.life, open.progress.counts)) {
                return differ(&id.to_string(), format!("{open:?}"), format!("{known:?}"));
            }
        }
        if state.open_requests().count() != self.open.len() {
            return Err("a request under way is missing".into());
        }
        self.tellings.agrees(state)?;
        self.requests_agree(state)
    }

    fn requests_agree(&self, state: &State) -> Told {
        if state.requests().count() != self.bills.len() {
            return Err(format!("{} requests are settled", self.bills.len()));
        }
        let settled = settled(state)?;
        for (request, number) in &self.of_request {
            let bill = &self.bills[*number];
            let Some(row) = state.request_by_id(request) else {
                return Err(format!("{request} is settled, and has no row"));
            };
            let logged = settled.get(&row.number).copied().unwrap_or_default();
            if logged != (bill.counts, bill.charged) {
                return Err(format!(
                    "{request}: {logged:?} by its settlements, {:?} by the model",
                    (bill.counts, bill.charged)
                ));
            }
            let is = (
                row.counts,
                row.cost.0.into(),
                row.charged.0.into(),
                row.refunded.0.into(),
            );
            let should = (bill.counts, bill.cost, bill.charged, bill.refunded);
            if is != should {
                return Err(format!(
                    "{request}: {is:?} by the state, {should:?} by the model"
                ));
            }
        }
        let cost: i128 = state.usage().map(|(_, sum)| i128::from(sum.cost.0)).sum();
        let requests: u64 = state.usage().map(|(_, sum)| sum.requests).sum();
        let charged: i128 = self.bills.iter().map(|bill| bill.charged).sum();
        match (requests, cost) == (self.bills.len() as u64, charged) {
            true => Ok(()),
            false => Err(format!(
                "{requests} requests of {cost} are summed, not {charged}"
            )),
        }
    }
}

/// What the log of settlements says of each request, and that it tells of all of them.
fn settled(state: &State) -> Result<BTreeMap<RequestNumber, (Counts, i128)>, String> {
    let mut sums = BTreeMap::<RequestNumber, (Counts, i128)>::new();
    let mut next = 1;
    for settlement in state.settlements_from(SettlementSeq(1)) {
        if settlement.seq.0 != next {
            return Err(format!("settlement {next} is missing"));
        }
        next += 1;
        let (counts, charged) = sums.entry(settlement.request).or_default();
        counts.prompt.0 += settlement.added.prompt.0;
        counts.cached.0 += settlement.added.cached.0;
        counts.completion.0 += settlement.added.completion.0;
        *charged += i128::from(settlement.charged.0);
    }
    match state.settlement_last().0 == next - 1 {
        true => Ok(sums),
        false => Err(format!(
            "{} settlements, not {next}",
            state.settlement_last()
        )),
    }
}
