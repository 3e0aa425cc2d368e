//! What billing must come to, by another way: a small model that is told every command that changed
//! the state, with its outcome, and says after each of them what money, leases and requests must be.
//!
//! It looks at no code of the state's. Where the state adds up as it goes, it keeps what it was told and
//! takes the largest; where the state divides a charge, it divides again. What a gateway is lent it
//! does not foretell: it holds every answer to what was there.

mod agrees;
mod webhooks;

use std::collections::BTreeMap;
use trireme_coordinator::state::{
    Account, Amounts, Answer, Command, Counts, DEFAULT_PRICES, KeySettings, Outcome, Payment,
    PriceList, Progress, Proposal, Report, Subject, TenantSettings, Work,
};
use trireme_shared::ids::{
    CoordinatorId, GatewayLife, KeyId, NanoUsd, RequestId, TenantId, Tokens,
};
use trireme_shared::limits;
use webhooks::Tellings;

/// A request, or all attempts under one idempotency key.
#[derive(Clone)]
struct Bill {
    tenant: TenantId,
    counts: Counts,
    /// Units of each provider; `None` are the platform's own.
    work: BTreeMap<Option<String>, u64>,
    price: PriceList,
    cost: i128,
    charged: i128,
    refunded: i128,
    attempts: Vec<RequestId>,
}

/// What may be spent under one line of keys or by one tenant.
#[derive(Default)]
struct Purse {
    budget: Option<i128>,
    slots: Option<u64>,
    day_tokens: Option<u64>,
    spent: BTreeMap<u64, i128>,
    used: BTreeMap<u64, u64>,
}

/// See the module.
#[derive(Default)]
pub struct Model {
    now_ms: u64,
    fee: Option<i128>,
    prices: Vec<(String, u64, PriceList)>,
    names: BTreeMap<String, TenantId>,
    credit: BTreeMap<TenantId, i128>,
    /// Tenant and line of each key.
    keys: BTreeMap<KeyId, (TenantId, KeyId)>,
    purses: BTreeMap<Subject, Purse>,
    balances: BTreeMap<Account, i128>,
    lives: BTreeMap<GatewayLife, CoordinatorId>,
    leases: BTreeMap<(Subject, GatewayLife), Amounts>,
    open: BTreeMap<RequestId, (GatewayLife, Progress)>,
    bills: Vec<Bill>,
    of_request: BTreeMap<RequestId, usize>,
    of_key: BTreeMap<(TenantId, [u8; 32]), usize>,
    tellings: Tellings,
}

type Told = Result<(), String>;

fn day(now_ms: u64) -> u64 {
    now_ms / 86_400_000
}

/// Months since 1970, counted day by day.
fn month(now_ms: u64) -> u64 {
    let (mut left, mut months) = (day(now_ms), 0);
    loop {
        let (year, of_year) = (1970 + months / 12, months % 12);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match of_year {
            1 => 28 + u64::from(leap),
            3 | 5 | 8 | 10 => 30,
            _ => 31,
        };
        if left < length {
            return months;
        }
        (left, months) = (left - length, months + 1);
    }
}

impl Model {
    /// A command was applied for the first time, and that came of it.
    pub fn on(&mut self, proposal: &Proposal, outcome: &Outcome) -> Told {
        if matches!(outcome, Outcome::Refused(_)) {
            return Ok(());
        }
        self.now_ms = self.now_ms.max(proposal.at_ms);
        let told = self.take(proposal, outcome);
        self.tellings.turn(self.now_ms);
        told
    }

    fn take(&mut self, proposal: &Proposal, outcome: &Outcome) -> Told {
        let now_s = self.now_ms / 1_000;
        self.tellings.on(&proposal.command, outcome, self.now_ms)?;
        match (&proposal.command, outcome) {
            (Command::PutTenant { name, settings }, Outcome::Tenant(id)) => {
                self.names.insert(name.clone(), *id);
                self.settle_tenant(*id, settings);
                self.look_at_budget(*id);
            }
            (Command::PutWebhook { tenant, .. }, _) => self.look_at_budget(*tenant),
            (
                Command::CreateKey {
                    tenant: name,
                    settings,
                    ..
                },
                Outcome::Key { tenant, key },
            ) => {
                if self.names.insert(name.clone(), *tenant).is_none() {
                    self.settle_tenant(*tenant, &TenantSettings::default());
                }
                self.keys.insert(*key, (*tenant, *key));
                self.settle_key(*key, settings);
            }
            (Command::RotateKey { key: old, .. }, Outcome::Key { tenant, key }) => {
                let line = self.keys[old].1;
                self.keys.insert(*key, (*tenant, line));
            }
            (Command::UpdateKey { key, settings }, _) => {
                self.settle_key(self.keys[key].1, settings)
            }
            (
                Command::PutPrice {
                    model,
                    effective_from,
                    list,
                },
                _,
            ) => {
                let from = match effective_from {
                    0 => now_s + 1,
                    from => *from,
                };
                self.prices.push((model.clone(), from, *list));
            }
            (Command::SetFee { fee }, _) => self.fee = Some(i128::from(fee.0)),
            (Command::Credit { tenant, amount, .. }, _) => {
                let amount = i128::from(amount.0);
                self.pay(Account::Funding, Account::Tenant(*tenant), amount);
                if amount < 0 && self.free(*tenant) < 0 {
                    return Err(format!("{tenant} was overdrawn by taking {amount} back"));
                }
            }
            (
                Command::Refund {
                    request, amount, ..
                },
                _,
            ) => {
                let owner = self.owner_of(request)?;
                let bill = &mut self.bills[self.of_request[request]];
                bill.refunded += i128::from(amount.0);
                if bill.refunded > bill.charged {
                    return Err(format!("{request} was refunded more than it was charged"));
                }
                let amount = i128::from(amount.0);
                self.pay(Account::Platform, Account::Tenant(owner), amount);
            }
            (
                Command::Payout {
                    provider, amount, ..
                },
                _,
            ) => {
                let provider = Account::Provider(provider.clone());
                self.pay(provider, Account::Funding, i128::from(amount.0));
            }
            (Command::OpenGateway { coordinator }, Outcome::Gateway(life)) => {
                let before = self.lives.iter().filter(|(_, c)| *c == coordinator);
                let before: Vec<GatewayLife> = before.map(|(life, _)| *life).collect();
                before.into_iter().for_each(|life| self.end(life));
                if self.lives.keys().any(|known| known >= life) {
                    return Err(format!("life {life} was given before"));
                }
                self.lives.insert(*life, *coordinator);
            }
            (Command::CloseGateway { life } | Command::ReapGateway { life }, _) => self.end(*life),
            (Command::Report { report }, Outcome::Reported { answers }) => {
                return self.report(report, answers);
            }
            _ => {}
        }
        Ok(())
    }

    fn settle_tenant(&mut self, id: TenantId, settings: &TenantSettings) {
        let credit = match settings.payment {
            Payment::Prepaid => 0,
            Payment::Credit { limit } => i128::from(limit.0),
        };
        self.credit.insert(id, credit);
        let purse = self.purses.entry(Subject::Tenant(id)).or_default();
        purse.budget = settings.monthly_budget.map(|b| i128::from(b.0));
        purse.slots = settings.limits.concurrency;
        purse.day_tokens = settings.limits.tokens_per_day.map(|t| t.0);
    }

    fn settle_key(&mut self, line: KeyId, settings: &KeySettings) {
        let line = self.keys.get(&line).map_or(line, |(_, line)| *line);
        let purse = self.purses.entry(Subject::Key(line)).or_default();
        purse.budget = settings.monthly_budget.map(|b| i128::from(b.0));
        purse.slots = settings.limits.concurrency;
        purse.day_tokens = settings.limits.tokens_per_day.map(|t| t.0);
    }

    /// What it was charged this month is held against its budget, for who wants to be told.
    fn look_at_budget(&mut self, tenant: TenantId) {
        let Some(purse) = self.purses.get(&Subject::Tenant(tenant)) else {
            return;
        };
        let spent = purse.spent.get(&month(self.now_ms)).copied();
        let (spent, budget) = (spent.unwrap_or_default(), purse.budget);
        self.tellings.spent(tenant, spent, budget, self.now_ms);
    }

    fn pay(&mut self, from: Account, to: Account, amount: i128) {
        for account in [&from, &to] {
            if let (Account::Tenant(tenant), true) = (account, amount != 0) {
                self.tellings.moved(*tenant, self.now_ms);
            }
        }
        *self.balances.entry(from).or_default() -= amount;
        *self.balances.entry(to).or_default() += amount;
    }

    fn lent(&self, subject: Subject) -> Amounts {
        let mut sum = Amounts::default();
        for ((of, _), lease) in &self.leases {
            if *of == subject {
                sum.money.0 += lease.money.0;
                sum.tokens.0 += lease.tokens.0;
                sum.slots += lease.slots;
            }
        }
        sum
    }

    /// What a tenant has and may owe beside what is lent.
    fn free(&self, tenant: TenantId) -> i128 {
        let account = Account::Tenant(tenant);
        let balance = self.balances.get(&account).copied().unwrap_or_default();
        let lent = self.lent(Subject::Tenant(tenant)).money.0;
        balance + self.credit[&tenant] - i128::from(lent)
    }

    /// What of the subject's bounds on money is left beside what is lent; `None` without a bound.
    fn free_money(&self, subject: Subject) -> Option<i128> {
        let funds = match subject {
            Subject::Tenant(id) => Some(self.free(id)),
            Subject::Key(_) => None,
        };
        let purse = self.purses.get(&subject);
        let budget = purse.and_then(|purse| {
            let spent = purse.spent.get(&month(self.now_ms)).copied();
            let lent = i128::from(self.lent(subject).money.0);
            Some(purse.budget? - spent.unwrap_or_default() - lent)
        });
        match (funds, budget) {
            (Some(funds), Some(budget)) => Some(funds.min(budget)),
            (funds, budget) => funds.or(budget),
        }
    }

    fn end(&mut self, life: GatewayLife) {
        let open = self.open.iter().filter(|(_, (of, _))| *of == life);
        let open: Vec<Progress> = open.map(|(_, (_, told))| told.clone()).collect();
        for told in open {
            self.finish(life, &told);
        }
        self.leases.retain(|(_, of), _| *of != life);
        self.lives.remove(&life);
    }

    fn report(&mut self, report: &Report, answers: &[Answer]) -> Told {
        let life = report.life;
        if !self.lives.contains_key(&life) {
            return Err(format!("life {life} has ended, and its report was taken"));
        }
        for back in &report.returns {
            let lease = self.leases.entry((back.subject, life)).or_default();
            let unneeded = back.unneeded;
            lease.money.0 -= unneeded.money.0.clamp(0, lease.money.0);
            lease.requests = lease.requests.saturating_sub(unneeded.requests);
            lease.tokens.0 = lease.tokens.0.saturating_sub(unneeded.tokens.0);
            lease.slots = lease.slots.saturating_sub(unneeded.slots);
        }
        for told in &report.progress {
            if self.is_told_of_its_own(told) {
                self.note(life, told);
            }
        }
        for last in &report.finals {
            if self.is_told_of_its_own(&last.progress) {
                self.finish(life, &last.progress);
            }
        }
        if report.asks.len() != answers.len() {
            return Err("an ask has no answer, or an answer no ask".into());
        }
        for (ask, answer) in report.asks.iter().zip(answers) {
            if let Answer::Granted(granted) = answer {
                self.grant(life, ask.subject, ask.least, *granted)?;
            }
        }
        Ok(())
    }

    fn grant(
        &mut self,
        life: GatewayLife,
        subject: Subject,
        least: Amounts,
        granted: Amounts,
    ) -> Told {
        if granted.money < least.money || granted.slots < least.slots {
            return Err(format!("{life} got {granted:?} where it needed {least:?}"));
        }
        let lease = self.leases.entry((subject, life)).or_default();
        lease.money.0 += granted.money.0;
        lease.requests += granted.requests;
        lease.tokens.0 += granted.tokens.0;
        lease.slots += granted.slots;
        let (lent, purse) = (self.lent(subject), &self.purses[&subject]);
        let used = purse.used.get(&day(self.now_ms)).copied();
        let tokens = used.unwrap_or_default() + lent.tokens.0;
        let over = self.free_money(subject).is_some_and(|free| free < 0)
            || (granted.slots > 0 && purse.slots.is_some_and(|most| lent.slots > most))
            || (granted.tokens.0 > 0 && purse.day_tokens.is_some_and(|most| tokens > most));
        match over {
            true => Err(format!(
                "{subject:?} was lent more than there is: {granted:?}"
            )),
            false => Ok(()),
        }
    }

    /// The key is the tenant's, and so is the request.
    fn is_told_of_its_own(&self, told: &Progress) -> bool {
        let key = self.keys.get(&told.key);
        let open = self.open.get(&told.request).map(|(_, open)| open.tenant);
        let settled = self.owner_of(&told.request).ok();
        key.is_some_and(|(tenant, _)| *tenant == told.tenant)
            && open.or(settled).is_none_or(|tenant| tenant == told.tenant)
    }

    fn owner_of(&self, request: &RequestId) -> Result<TenantId, String> {
        let bill = self.of_request.get(request).map(|n| &self.bills[*n]);
        let owner = bill.map(|bill| bill.tenant);
        owner.ok_or_else(|| format!("{request} is not settled"))
    }

    fn note(&mut self, life: GatewayLife, told: &Progress) {
        if let Some(bill) = self.of_request.get(&told.request) {
            let bill = &self.bills[*bill];
            let known = |w: &&Work| bill.work.get(&w.provider).is_some_and(|u| *u >= w.units);
            if largest(bill.counts, told.counts) == bill.counts
                && told.work.iter().filter(known).count() == told.work.len()
            {
                return;
            }
        }
        let merged = self.with_open(told);
        let newest = self.open.get(&told.request).map(|(of, _)| *of);
        let life = newest.map_or(life, |of| of.max(life));
        self.open.insert(told.request.clone(), (life, merged));
    }

    fn with_open(&self, told: &Progress) -> Progress {
        let mut merged = told.clone();
        if let Some((_, open)) = self.open.get(&told.request) {
            merged.counts = largest(open.counts, told.counts);
            merged.began_at_ms = open.began_at_ms.min(told.began_at_ms);
            merged.work.extend(open.work.iter().cloned());
        }
        merged
    }

    fn finish(&mut self, life: GatewayLife, told: &Progress) {
        let told = self.with_open(told);
        self.open.remove(&told.request);
        let known = self.of_request.get(&told.request).copied().or_else(|| {
            let bill = *self.of_key.get(&(told.tenant, told.idempotency?))?;
            (self.bills[bill].attempts.len() < limits::REQUEST_ATTEMPTS_MAX).then_some(bill)
        });
        let number = known.unwrap_or(self.bills.len());
        if known.is_none() {
            let price = self.price(&told.model, told.began_at_ms / 1_000);
            self.bills.push(Bill {
                tenant: told.tenant,
                counts: Counts::default(),
                work: BTreeMap::new(),
                price,
                cost: 0,
                charged: 0,
                refunded: 0,
                attempts: Vec::new(),
            });
            if let Some(hash) = told.idempotency {
                self.of_key.insert((told.tenant, hash), number);
            }
        }
        let mut bill = self.bills[number].clone();
        let again = self
            .of_request
            .insert(told.request.clone(), number)
            .is_some();
        if !again {
            bill.attempts.push(told.request.clone());
        }
        let before = bill.counts;
        bill.counts = largest(before, told.counts);
        for work in &told.work {
            let units = bill.work.entry(work.provider.clone()).or_default();
            *units = work.units.max(*units);
        }
        let cost = cost(&bill.price, bill.counts).max(bill.cost);
        let line = Subject::Key(self.keys[&told.key].1);
        let subjects = [Subject::Tenant(told.tenant), line];
        let mut charge = cost - bill.cost;
        for subject in subjects {
            let lease = self.leases.get(&(subject, life)).copied();
            let lease = i128::from(lease.unwrap_or_default().money.0);
            if let Some(free) = self.free_money(subject) {
                charge = charge.min(lease + free.max(0));
            }
        }
        bill.cost = cost;
        bill.charged += charge;
        self.divide(told.tenant, charge, &bill.work);
        let tokens = bill.counts.prompt.0 + bill.counts.completion.0;
        let tokens = tokens - before.prompt.0 - before.completion.0;
        for subject in subjects {
            let lease = self.leases.entry((subject, life)).or_default();
            let money = i64::try_from(charge).unwrap_or(i64::MAX);
            lease.money = NanoUsd(lease.money.0.saturating_sub(money).max(0));
            lease.requests = lease.requests.saturating_sub(u64::from(!again));
            lease.tokens = Tokens(lease.tokens.0.saturating_sub(tokens));
            let purse = self.purses.entry(subject).or_default();
            *purse.spent.entry(month(self.now_ms)).or_default() += charge;
            *purse.used.entry(day(self.now_ms)).or_default() += tokens;
        }
        self.bills[number] = bill;
        if charge > 0 {
            self.look_at_budget(told.tenant);
        }
    }

    fn price(&self, model: &str, at_s: u64) -> PriceList {
        let of_model = |(name, from, _): &&(String, u64, PriceList)| name == model && *from <= at_s;
        let in_force = self.prices.iter().filter(of_model);
        // Of two that begin at once the one that was set later.
        in_force
            .max_by_key(|(_, from, _)| *from)
            .map_or(DEFAULT_PRICES, |(_, _, list)| *list)
    }

    /// The tenant's charge: the fee stays with the platform, the rest goes where the work was done, and
    /// what no share is made of stays too.
    fn divide(&mut self, tenant: TenantId, charge: i128, work: &BTreeMap<Option<String>, u64>) {
        let fee = self.fee.unwrap_or(1_000);
        let shared = charge * (10_000 - fee) / 10_000;
        let all: i128 = work.values().map(|units| i128::from(*units)).sum();
        let mut kept = charge;
        for (provider, units) in work {
            if let Some(provider) = provider
                && all > 0
            {
                let share = shared * i128::from(*units) / all;
                kept -= share;
                let to = Account::Provider(provider.clone());
                self.pay(Account::Tenant(tenant), to, share);
            }
        }
        self.pay(Account::Tenant(tenant), Account::Platform, kept);
    }
}

fn largest(a: Counts, b: Counts) -> Counts {
    Counts {
        prompt: a.prompt.max(b.prompt),
        cached: a.cached.max(b.cached),
        completion: a.completion.max(b.completion),
    }
}

/// In millionths of a nano-dollar first, then rounded up.
fn cost(price: &PriceList, counts: Counts) -> i128 {
    let cached = counts.cached.min(counts.prompt).0;
    let parts = [
        (counts.prompt.0 - cached, price.input),
        (cached, price.cached_input),
        (counts.completion.0, price.output),
    ];
    let sum = parts.map(|(tokens, price)| i128::from(tokens) * i128::from(price.0));
    let exact: i128 = sum.iter().sum();
    let rounded = exact / 1_000_000 + i128::from(exact % 1_000_000 > 0);
    match counts.completion.0 {
        0 => rounded,
        _ => rounded.max(i128::from(price.minimum.0)),
    }
}
