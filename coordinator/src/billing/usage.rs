//! Sums over the usage totals of the state. Pure.

use crate::state::{State, UsageTotals};
use trireme_shared::ids::{DeploymentId, KeyId, TenantId};

/// One line of what a tenant used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UsageLine {
    pub key: KeyId,
    pub deployment: DeploymentId,
    pub totals: UsageTotals,
}

/// What a tenant used, by key and deployment, in the order of their numbers.
pub fn lines(state: &State, tenant: TenantId) -> Vec<UsageLine> {
    state
        .usage()
        .filter(|((of, _, _), _)| *of == tenant)
        .map(|((_, key, deployment), totals)| UsageLine {
            key: *key,
            deployment: *deployment,
            totals: *totals,
        })
        .collect()
}

/// The sum of some totals.
pub fn sum<'a>(totals: impl IntoIterator<Item = &'a UsageTotals>) -> UsageTotals {
    totals
        .into_iter()
        .fold(UsageTotals::default(), |mut sum, t| {
            sum.requests = sum.requests.saturating_add(t.requests);
            sum.prompt.0 = sum.prompt.0.saturating_add(t.prompt.0);
            sum.cached.0 = sum.cached.0.saturating_add(t.cached.0);
            sum.completion.0 = sum.completion.0.saturating_add(t.completion.0);
            sum.cost.0 = sum.cost.0.saturating_add(t.cost.0);
            sum
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use trireme_shared::ids::{NanoUsd, Tokens};

    #[test]
    fn sums_every_column() {
        let one = UsageTotals {
            requests: 1,
            prompt: Tokens(2),
            cached: Tokens(3),
            completion: Tokens(4),
            cost: NanoUsd(5),
        };
        let two = sum([&one, &one]);
        assert_eq!(
            (two.requests, two.prompt, two.cached),
            (2, Tokens(4), Tokens(6))
        );
        assert_eq!((two.completion, two.cost), (Tokens(8), NanoUsd(10)));
    }
}
