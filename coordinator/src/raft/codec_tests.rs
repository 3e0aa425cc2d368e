//! Messages and entries survive the way; what is hostile is refused or stays opaque; protobuf's parser
//! is never given anything that came from outside.

use super::*;

fn message(kind: MessageKind) -> PeerMessage {
    PeerMessage {
        kind,
        from: 1,
        to: 2,
        term: 5,
        log_term: 0,
        index: 0,
        entries: Vec::new(),
        commit: 0,
        commit_term: 0,
        request_snapshot: 0,
        reject: false,
        reject_hint: 0,
        context: Vec::new(),
        snapshot: None,
    }
}

fn entry(index: Index, term: Term, kind: EntryKind, data: &[u8]) -> LogEntry {
    LogEntry {
        index,
        term,
        kind,
        data: data.to_vec(),
    }
}

fn append() -> PeerMessage {
    PeerMessage {
        log_term: 4,
        index: 7,
        entries: vec![
            entry(8, 4, EntryKind::Commands, b"commands"),
            entry(9, 5, EntryKind::Members, b"members"),
        ],
        commit: 8,
        context: b"context".to_vec(),
        ..message(MessageKind::Append)
    }
}

/// A protobuf group nested deeper than any stack: what RUSTSEC-2024-0437 is about.
fn nested() -> Vec<u8> {
    vec![0x0B; 200_000]
}

#[test]
fn a_message_arrives_as_it_was_sent() {
    let snapshot = PeerMessage {
        snapshot: Some(SnapshotMeta {
            index: 9,
            term: 4,
            members: Membership {
                voters: vec![1, 2],
                learners: vec![3],
                ..Membership::default()
            },
        }),
        ..message(MessageKind::Snapshot)
    };
    let read = PeerMessage {
        term: 0,
        entries: vec![entry(0, 0, EntryKind::Commands, b"name")],
        ..message(MessageKind::ReadIndex)
    };
    let vote = PeerMessage {
        log_term: 3,
        index: 9,
        commit: 4,
        commit_term: 2,
        ..message(MessageKind::RequestPreVote)
    };
    for sent in [append(), snapshot, read, vote] {
        let bytes = encode_message(&sent).unwrap();
        let read = decode_message(&bytes).unwrap();
        assert_eq!(read, sent);
        let raft = read.into_raft(100).unwrap();
        assert_eq!(PeerMessage::from_raft(raft).unwrap(), sent);
    }
}

#[test]
fn what_no_member_says_is_refused() {
    let gap = PeerMessage {
        index: 6,
        ..append()
    };
    let of_the_future = PeerMessage {
        term: 4,
        ..append()
    };
    let own = PeerMessage {
        from: 2,
        ..append()
    };
    let anonymous = PeerMessage {
        from: 0,
        ..append()
    };
    let beyond = PeerMessage {
        commit: 101,
        ..message(MessageKind::Heartbeat)
    };
    let empty_read = message(MessageKind::ReadIndex);
    let lost_snapshot = message(MessageKind::Snapshot);
    let termless = PeerMessage {
        term: 0,
        ..message(MessageKind::RequestVote)
    };
    let entries = PeerMessage {
        entries: append().entries,
        ..message(MessageKind::Heartbeat)
    };
    for wrong in [
        gap,
        of_the_future,
        own,
        anonymous,
        beyond,
        empty_read,
        lost_snapshot,
        termless,
        entries,
    ] {
        assert!(wrong.clone().into_raft(100).is_err(), "{wrong:?}");
    }
    assert!(append().into_raft(100).is_ok());
}

#[test]
fn what_raft_says_to_itself_never_leaves() {
    for kind in [
        MessageType::MsgHup,
        MessageType::MsgPropose,
        MessageType::MsgTransferLeader,
        MessageType::MsgSnapStatus,
    ] {
        let mut message = Message::default();
        message.set_msg_type(kind);
        assert!(PeerMessage::from_raft(message).is_none(), "{kind:?}");
    }
}

/// RUSTSEC-2024-0437: a hostile member fills every field of bytes with what crashes protobuf's parser.
/// raft-rs parses the *data* of entries that change the members; ours have none.
#[test]
fn no_byte_from_outside_reaches_protobufs_parser() {
    let mut hostile = append();
    hostile.context = nested();
    for entry in &mut hostile.entries {
        entry.data = nested();
    }
    let bytes = encode_message(&hostile).unwrap();
    let raft = decode_message(&bytes).unwrap().into_raft(100).unwrap();
    let [commands, members] = raft.get_entries() else {
        panic!("two entries");
    };
    assert_eq!(
        commands.get_entry_type(),
        EntryType::EntryNormal,
        "never parsed"
    );
    assert_eq!(members.get_entry_type(), EntryType::EntryConfChangeV2);
    assert!(members.data.is_empty(), "what raft-rs would parse is empty");
    // From the disk it is the same path.
    let stored = raft_entry(entry(3, 1, EntryKind::Members, &nested()));
    assert!(stored.data.is_empty());
    assert!(decode_changes(&nested()).is_err());
    assert!(decode_proposals(&nested()).is_err());
    // And what this process proposes itself leaves it without its protobuf.
    let mut own = Entry::default();
    own.set_entry_type(EntryType::EntryConfChangeV2);
    own.data = nested().into();
    own.context = encode_changes(&[MemberChange::AddVoter(3)]).unwrap().into();
    let left = log_entry(&own);
    assert_eq!(
        decode_changes(&left.data).unwrap(),
        [MemberChange::AddVoter(3)]
    );
}

#[test]
fn cut_and_changed_bytes_never_panic_and_never_allocate_much() {
    let bytes = encode_message(&append()).unwrap();
    for end in 0..bytes.len() {
        assert!(decode_message(&bytes[..end]).is_err());
    }
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0xFF;
        if let Ok(message) = decode_message(&changed) {
            let _ = message.into_raft(100);
        }
    }
}
