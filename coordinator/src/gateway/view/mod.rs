//! Rows of the state as the admin and the billing API tell of them, and what these set as the state takes
//! it: `settings` of tenants and keys, `money` in postings and prices, `requests` one by one. Pure.

mod money;
mod requests;
mod settings;

pub use money::{account, posting, price_list, provider, sums};
pub use requests::{
    admin_open_request, admin_request, open_request, request, running, settled, settlement,
};
pub use settings::{key, stored_key_settings, stored_tenant_settings, tenant};

use crate::state::State;
use trireme_shared::ids::{NanoUsd, TenantId};

/// Money that is summed beyond what a balance holds, held at that.
fn nano_usd(sum: i128) -> NanoUsd {
    NanoUsd(i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX }))
}

/// What is left of money, held to what a balance holds.
pub fn available(funds: Option<i128>) -> NanoUsd {
    nano_usd(funds.unwrap_or_default())
}

fn tenant_name(state: &State, id: TenantId) -> String {
    let found = state.tenant(id).map(|t| t.name.clone());
    found.unwrap_or_else(|| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_beyond_a_balance_are_held() {
        assert_eq!(nano_usd(i128::from(i64::MAX) + 1), NanoUsd(i64::MAX));
        assert_eq!(nano_usd(i128::from(i64::MIN) - 1), NanoUsd(i64::MIN));
        assert_eq!(nano_usd(-3), NanoUsd(-3));
    }
}
