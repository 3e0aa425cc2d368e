//! What is due, and that what was delivered goes.

use super::*;
use crate::scratch::{Scratch, group_of_one};
use crate::state::apply::tests::{Member, bootstrap_command, hash, key};
use crate::state::{Outcome, Topics};
use std::io::{Read, Write};
use std::net::TcpListener;
use trireme_shared::ids::EventSeq;

fn put(tenant: u32, url: &str) -> Command {
    Command::PutWebhook {
        tenant: TenantId(tenant),
        url: url.into(),
        topics: Topics::default(),
        secret: hash(9),
        rotate: false,
    }
}

fn test(tenant: u32) -> Command {
    let tenant = TenantId(tenant);
    Command::TestWebhook { tenant }
}

#[test]
fn one_event_of_a_tenant_is_due_the_oldest_first_and_those_that_waited_longest() {
    let mut member = Member::default();
    member.ask(bootstrap_command());
    for tenant in 1..=3 {
        member.ask(key(&format!("tenant {tenant}"), tenant as u8));
        member.ask(put(tenant, "https://example.com"));
    }
    for (now, tenant) in [(10, 2), (20, 1), (30, 1), (40, 3)] {
        member.now = now;
        member.ask(test(tenant));
    }
    let seqs = |member: &Member, busy: Option<u32>, room, now_s: u64| {
        let busy = |tenant| busy.map(TenantId) == Some(tenant);
        let due = due(&member.state, busy, room, now_s * 1_000 + 999);
        due.iter().map(|p| p.event.seq.0).collect::<Vec<_>>()
    };
    assert_eq!(seqs(&member, None, 9, 9), [0; 0]);
    assert_eq!(seqs(&member, None, 9, 40), [1, 2, 4]);
    assert_eq!(seqs(&member, None, 2, 40), [1, 2]);
    assert_eq!(seqs(&member, Some(1), 9, 40), [1, 4]);
    // What failed waits, and lets what came after it go.
    member.ask(Command::NoteDelivery {
        tenant: TenantId(1),
        event: EventSeq(2),
        failures: 0,
        error: Some("it answered 500".into()),
    });
    assert_eq!(seqs(&member, None, 9, 40), [1, 3, 4]);
    assert_eq!(seqs(&member, None, 9, 44), [1, 3, 4]);
    assert_eq!(seqs(&member, None, 9, 45), [1, 4, 2]);
    member.ask(Command::RemoveWebhook {
        tenant: TenantId(1),
    });
    assert_eq!(seqs(&member, None, 9, 45), [1, 4]);
}

#[tokio::test]
async fn the_leader_delivers_one_after_another_and_notes_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let receiver = std::thread::spawn(move || {
        let one = |_| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = String::new();
            while !heard.ends_with('}') {
                let mut piece = [0; 4_096];
                let length = stream.read(&mut piece).unwrap();
                assert!(length > 0, "it broke off");
                heard.push_str(std::str::from_utf8(&piece[..length]).unwrap());
            }
            let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            stream.write_all(ok).unwrap();
            let id = heard.split("webhook-id: ").nth(1).unwrap();
            id.split("\r\n").next().unwrap().to_owned()
        };
        [1, 2].map(one)
    });
    let dir = Scratch::new();
    let group = group_of_one(dir.path()).await;
    for command in [
        bootstrap_command(),
        key("acme", 1),
        put(1, &url),
        test(1),
        test(1),
    ] {
        let outcome = group.propose(command).await.unwrap();
        assert!(!matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
    }
    let shutdown = CancellationToken::new();
    let delivering = tokio::spawn(deliver(group.clone(), Reach::Private, shutdown.clone()));
    let mut applied = group.applied();
    let delivered = |s: &State| s.webhook(TenantId(1)).unwrap().delivered;
    let all = async {
        while group.read(delivered) < 2 {
            applied.changed().await.unwrap();
        }
    };
    tokio::time::timeout(limits::PROPOSE_DEADLINE * 3, all)
        .await
        .unwrap();
    assert_eq!(receiver.join().unwrap(), ["test-t1-1", "test-t1-2"]);
    assert_eq!(group.read(|s| s.webhook_events().count()), 0);
    shutdown.cancel();
    delivering.await.unwrap();
}
