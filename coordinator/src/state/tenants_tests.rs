//! Keys that work, and for how long.

use super::*;
use crate::state::apply::tests::{Member, hash, key, limited};
use crate::state::{Command, Limits, Payment};
use trireme_shared::limits::{RATE_LIMIT_MAX, WEIGHT_MAX};

fn with(settings: KeySettings, byte: u8) -> Command {
    Command::CreateKey {
        tenant: "acme".into(),
        key_hash: hash(byte),
        settings,
    }
}

fn put(settings: TenantSettings) -> Command {
    Command::PutTenant {
        name: "acme".into(),
        settings,
    }
}

fn fault(member: &Member, byte: u8, now: u64) -> Option<KeyFault> {
    member.state.authenticate(&hash(byte), now).err()
}

#[test]
fn a_key_works_until_it_expires_or_is_revoked() {
    let mut member = Member::default();
    let settings = KeySettings {
        expires_at: Some(50),
        ..KeySettings::default()
    };
    member.ask(with(settings, 1));
    assert_eq!(fault(&member, 1, 49), None);
    assert_eq!(fault(&member, 1, 50), Some(KeyFault::Expired));
    assert_eq!(fault(&member, 2, 0), Some(KeyFault::Unknown));
    member.now = 10;
    let revoke = Command::RevokeKey { key: KeyId(1) };
    assert_eq!(member.ask(revoke.clone()), Outcome::Done);
    member.now = 20;
    assert_eq!(member.ask(revoke), Outcome::Done);
    assert_eq!(member.state.key(KeyId(1)).unwrap().revoked_at, Some(10));
    assert_eq!(fault(&member, 1, 10), Some(KeyFault::Revoked));
    // Hashes stay taken.
    assert_eq!(member.refused(key("zeta", 1)), Refusal::KeyExists);
    assert_eq!(member.state.tenants().count(), 1);
}

#[test]
fn a_suspended_tenants_keys_let_nobody_in() {
    let mut member = Member::default();
    member.ask(key("acme", 1));
    member.ask(put(TenantSettings {
        status: TenantStatus::Suspended,
        ..limited()
    }));
    assert_eq!(fault(&member, 1, 0), Some(KeyFault::Suspended));
    assert_eq!(member.ask(put(limited())), Outcome::Tenant(TenantId(1)));
    assert_eq!(fault(&member, 1, 0), None);
    assert_eq!(
        member.state.tenant_named("acme").unwrap().settings,
        limited()
    );
}

#[test]
fn a_rotated_key_works_beside_its_successor_for_the_overlap() {
    let mut member = Member {
        now: 100,
        ..Member::default()
    };
    let settings = KeySettings {
        name: "ci".into(),
        expires_at: Some(1_000),
        monthly_budget: Some(NanoUsd(5)),
        ..KeySettings::default()
    };
    member.ask(with(settings.clone(), 1));
    let rotate = |key: u32, byte: u8, overlap: u64| Command::RotateKey {
        key: KeyId(key),
        key_hash: hash(byte),
        overlap,
    };
    let (tenant, made) = (TenantId(1), KeyId(2));
    assert_eq!(
        member.ask(rotate(1, 2, 30)),
        Outcome::Key { tenant, key: made }
    );
    let new = member.state.key(made).unwrap();
    assert_eq!((new.replaces, new.line), (Some(KeyId(1)), KeyId(1)));
    assert_eq!(new.settings, settings, "its own end too");
    assert_eq!(
        (fault(&member, 1, 129), fault(&member, 2, 129)),
        (None, None)
    );
    assert_eq!(fault(&member, 1, 130), Some(KeyFault::Expired));
    assert_eq!(fault(&member, 2, 999), None);
    // An overlap never lengthens a key's life, and one that is over has no successor.
    assert_eq!(
        member.ask(rotate(2, 3, 5_000)),
        Outcome::Key {
            tenant,
            key: KeyId(3)
        }
    );
    assert_eq!(fault(&member, 2, 1_000), Some(KeyFault::Expired));
    assert_eq!(member.state.key(KeyId(3)).unwrap().line, KeyId(1));
    member.now = 130;
    assert_eq!(member.refused(rotate(1, 4, 1)), Refusal::KeyEnded(KeyId(1)));
    assert_eq!(member.refused(rotate(3, 2, 1)), Refusal::KeyExists);
    assert_eq!(
        member.refused(rotate(9, 5, 1)),
        Refusal::UnknownKey(KeyId(9))
    );
    member.state.check().unwrap();
}

#[test]
fn a_line_of_keys_has_one_set_of_limits() {
    let mut member = Member::default();
    member.ask(key("acme", 1));
    member.ask(key("acme", 9));
    member.ask(Command::RotateKey {
        key: KeyId(1),
        key_hash: hash(2),
        overlap: 10,
    });
    let settings = KeySettings {
        name: "new".into(),
        limits: limited().limits,
        monthly_budget: Some(NanoUsd(5)),
        ..KeySettings::default()
    };
    member.ask(Command::UpdateKey {
        key: KeyId(3),
        settings: settings.clone(),
    });
    let of = |id: u32| member.state.key(KeyId(id)).unwrap().settings.clone();
    assert_eq!(of(3), settings);
    assert_eq!((of(1).name, of(1).expires_at), (String::new(), Some(10)));
    assert_eq!(
        (of(1).limits, of(1).monthly_budget),
        (settings.limits, Some(NanoUsd(5)))
    );
    assert_eq!(of(2), KeySettings::default(), "of another line");
}

#[test]
fn settings_out_of_range_are_refused() {
    let mut member = Member::default();
    let limits = |set: fn(&mut Limits, Option<u64>)| {
        let mut limits = Limits::default();
        set(&mut limits, Some(RATE_LIMIT_MAX + 1));
        limits
    };
    let odd = [
        limits(|l, n| l.requests_per_minute = n),
        limits(|l, n| l.tokens_per_minute = n.map(trireme_shared::ids::Tokens)),
        limits(|l, n| l.tokens_per_day = n.map(trireme_shared::ids::Tokens)),
        limits(|l, n| l.concurrency = n),
    ];
    for limits in odd {
        let key = KeySettings {
            limits: limits.clone(),
            ..KeySettings::default()
        };
        assert_eq!(member.refused(with(key, 1)), Refusal::LimitRange);
        let tenant = TenantSettings {
            limits,
            ..TenantSettings::default()
        };
        assert_eq!(member.refused(put(tenant)), Refusal::LimitRange);
    }
    let change: [fn(&mut TenantSettings); 4] = [
        |s| s.weight = 0,
        |s| s.weight = WEIGHT_MAX + 1,
        |s| s.monthly_budget = Some(NanoUsd(-1)),
        |s| s.payment = Payment::Credit { limit: NanoUsd(-1) },
    ];
    for change in change {
        let mut settings = TenantSettings::default();
        change(&mut settings);
        assert_eq!(member.refused(put(settings)), Refusal::LimitRange);
    }
    assert_eq!(member.state.tenants().count(), 0);
}
