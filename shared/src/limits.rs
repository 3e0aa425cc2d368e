//! Every bound in the system, with the reason for its value. A queue, frame, batch or wait whose
//! bound is not here is a defect.

use std::time::Duration;

// --- frames -----------------------------------------------------------------------------------

/// Largest control-plane frame (registration, assignment, heartbeat). A plan for 1,024 ranks is
/// about 150 KiB; a few times that leaves room without letting a peer make us allocate much.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;

/// Largest generate frame. A prompt of `PROMPT_TOKENS_MAX` ids is 4 MiB.
pub const GENERATE_FRAME_BYTES_MAX: usize = 8 << 20;

/// Largest data-plane frame: a prefill chunk's activations, `STEP_TOKENS_MAX` x 16,384 f32.
pub const LINK_FRAME_BYTES_MAX: usize = 64 << 20;

/// Largest join frame: a token, a certificate request or a certificate; each is under 2 KiB. Small,
/// because a joiner is not yet anybody.
pub const JOIN_FRAME_BYTES_MAX: usize = 16 << 10;

/// Largest Raft frame: an append of 4 MiB of entries, a last entry beyond that, and room.
pub const RAFT_FRAME_BYTES_MAX: usize = 16 << 20;

/// Largest frame of what coordinators forward to each other (proposals and reads).
pub const GROUP_FRAME_BYTES_MAX: usize = 4 << 20;

// --- connections ------------------------------------------------------------------------------

/// QUIC keep-alive: three are sent before `PEER_SILENCE_MAX` is over.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(800);

/// Handshakes in progress at one endpoint; more are refused, so that a flood costs bounded memory.
pub const HANDSHAKES_MAX: usize = 256;

/// Addresses tried for one name.
pub const DIAL_ADDRESSES_MAX: usize = 4;

/// How long a closing endpoint lingers to repeat its closes: they are sent at once, and a dial in
/// progress would linger for seconds. Peers that miss them notice by `PEER_SILENCE_MAX`.
pub const CLOSE_DEADLINE: Duration = Duration::from_millis(300);

/// How long a leaving worker waits until its coordinator has its goodbye.
pub const GOODBYE_DEADLINE: Duration = Duration::from_secs(1);

/// Bytes in flight to us on one connection whose peer is not authenticated yet.
pub const UNAUTHENTICATED_WINDOW_BYTES: u32 = 64 << 10;

/// Bytes in flight to us on one authenticated connection, and on one of its streams. A tensor of
/// `STEP_TOKENS_MAX` rows of a 4,096-wide model is 8 MiB: it must not wait for a window update.
pub const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
pub const STREAM_WINDOW_BYTES: u32 = 16 << 20;

/// Streams a peer may have open on one control connection (one, and one more while reconnecting).
pub const CONTROL_STREAMS_MAX: u32 = 2;

/// Streams a gateway may have open at one driver: all that may run and wait there.
pub const GENERATE_STREAMS_MAX: u32 = (WAITING_SEQUENCES_MAX + STEP_SEQUENCES_MAX) as u32;

/// Streams between two workers: each replica they share opens a few.
pub const LINK_STREAMS_MAX: u32 = 256;

/// Streams between two members for Raft: messages, and a snapshot or two.
pub const RAFT_STREAMS_MAX: u32 = 8;

/// Streams a coordinator may have open at another: proposals and reads that it forwards.
pub const GROUP_STREAMS_MAX: u32 = 1_024;

/// Bytes a connection may have under way before the path is known: one all-reduce chunk each way
/// and then some. The nodes of a cluster are near each other.
pub const INITIAL_WINDOW_BYTES: u64 = 256 << 10;

/// The round trip assumed of a path that was never used. A dial's first packet is sent again after
/// three times this (QUIC's own assumption makes it a second), so that a peer that starts just after
/// it was dialled is found soon. On longer paths a handshake costs a few packets more.
pub const INITIAL_RTT: Duration = Duration::from_millis(25);

/// Shortest time between two answers to packets of forgotten connections. After a restart each peer
/// needs one; the answer is smaller than the packet, so that it amplifies nothing.
pub const RESET_INTERVAL_MIN: Duration = Duration::from_millis(1);

/// Longest that a received packet goes without an acknowledgement.
pub const ACK_DELAY_MAX: Duration = Duration::from_millis(1);

/// Receive and send buffers asked of the kernel for the UDP socket: several messages of 64 KiB
/// from several peers, each counted by the kernel at up to twice its bytes. The system's own limit
/// (`net.core.rmem_max`) may give less.
pub const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Largest UDP payload tried on a path: a 9,000-byte jumbo frame less its headers.
pub const UDP_PAYLOAD_BYTES_MAX: u16 = 8_900;

// --- certificates -----------------------------------------------------------------------------

/// How long a node certificate holds: what a stolen key is good for. It is renewed at half of it, so
/// that a cluster may be cut off for 12 hours before a node has to join again.
pub const NODE_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(86_400);

/// CA certificates that a node trusts at once: two while the CA is being rotated, and room for a
/// rotation that was begun anew.
pub const AUTHORITIES_MAX: usize = 4;

/// CA certificates that the state trusts at a time: the one that signs, and one that comes or goes.
pub const STATE_AUTHORITIES_MAX: usize = 2;

/// Removed nodes that an endpoint refuses by name, some 2 MiB. Their certificates end within
/// `NODE_CERTIFICATE_LIFETIME`, so that the oldest may be forgotten above it.
pub const REMOVED_NODES_MAX: usize = 65_536;

/// How long a cluster's own CA holds.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How often a wait for a moment looks at the clock on the wall, which jumps where a machine was suspended
/// or its clock is set.
pub const WALL_CLOCK_LOOK: Duration = Duration::from_secs(15);

/// How far the clocks of two nodes may differ when a new certificate is used at once.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

// --- waits ------------------------------------------------------------------------------------

/// A worker says it lives this often; three missed beats and it is taken for dead.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// QUIC idle timeout of control connections: the time after which a silently dead peer is noticed.
pub const PEER_SILENCE_MAX: Duration = Duration::from_millis(2_500);

/// Dialling and handshaking with one address.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The same between the members of a group, where a dead one is dialled again at once.
pub const RAFT_CONNECT_DEADLINE: Duration = Duration::from_millis(500);

/// Between coordinators: how long an unanswered handshake waits before another is begun beside it,
/// and how many there are. A member that was restarted is found within this; the longest path of a
/// cluster takes a few of them.
pub const DIAL_AGAIN: Duration = Duration::from_millis(100);
pub const DIALS_AT_ONCE_MAX: usize = 5;

/// One control request and its answer.
pub const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

/// First and longest wait between attempts to reach a lost coordinator; each is then shortened by up
/// to half at random. The longest is well below `LEADER_SETTLE`: a coordinator that comes back must
/// have its workers again before it takes them for gone.
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(100);
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(1);

/// Coordinators a worker holds a link to: the largest group is 5, and a change of its members adds
/// at most as many again.
pub const COORDINATOR_LINKS_MAX: usize = 10;

/// Wait between two requests for a new certificate while the old one still holds.
pub const RENEW_RETRY_INTERVAL: Duration = Duration::from_secs(60);

/// How long a joiner keeps dialling a coordinator that does not answer: long enough for one that is
/// started at the same time, short enough to notice a wrong address.
pub const JOIN_PATIENCE: Duration = Duration::from_secs(30);

/// Control messages waiting between a worker's agent and its connection. Heartbeats that find it
/// full are left out.
pub const CONTROL_QUEUE_MAX: usize = 16;

/// How long a worker that leaves waits for its rank: twice what stopping one may take.
pub const WORKER_EXIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a driver holds an event for a gateway that does not read; then the stream is cancelled.
pub const STREAM_STALL_MAX: Duration = Duration::from_secs(60);

/// Events a driver's stream takes from its queue at once.
pub const STREAM_WRITE_EVENTS_MAX: usize = 64;

/// One step of a replica, end to end. A 512-token prefill chunk of a 1B model on one slow core
/// takes about 10 s; beyond this the rank that is waited for counts as dead.
pub const STEP_DEADLINE: Duration = Duration::from_secs(60);

/// All ranks of a replica finding each other, after every rank has loaded.
pub const MESH_DEADLINE: Duration = Duration::from_secs(30);

/// How long a request waits for a replica to be (again) ready before it is answered 503.
pub const REPLICA_WAIT_MAX: Duration = Duration::from_secs(20);

/// How long running requests may go on after a drain began.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

// --- requests ---------------------------------------------------------------------------------

/// Largest HTTP body: 4 MiB of text is over a million tokens, more than any context we serve.
pub const HTTP_BODY_BYTES_MAX: usize = 4 << 20;

/// Largest prompt in tokens, whatever the model's context.
pub const PROMPT_TOKENS_MAX: usize = 1 << 20;

/// Choices (`n`) times prompts one request may ask for; each is a sequence of its own.
pub const CHOICES_MAX: usize = 128;

/// Stop strings in one request, and the bytes of each (OpenAI takes 4; more is harmless).
pub const STOP_STRINGS_MAX: usize = 16;
pub const STOP_STRING_BYTES_MAX: usize = 1_024;

/// `logit_bias` entries in one request (OpenAI's own bound is the vocabulary).
pub const LOGIT_BIAS_MAX: usize = 1_024;

/// `top_logprobs` / `logprobs` of one position.
pub const TOP_LOGPROBS_MAX: u8 = 20;

/// Events of one stream waiting for its client. A client that reads slower than this many tokens
/// behind is waited for: the stream's sequence pauses nothing else.
pub const STREAM_EVENTS_MAX: usize = 4_096;

// --- HTTP gateway -----------------------------------------------------------------------------

/// Open client connections, and so requests (one at a time on each) whose sender is not known yet or that
/// are being refused. Above it new ones wait in the kernel's accept queue.
pub const HTTP_CONNECTIONS_MAX: usize = 4_096;

/// Tenants' HTTP requests being answered at once; one more is answered 503. Twice what one driver's
/// waiting room holds would only queue where no client can see it.
pub const HTTP_REQUESTS_MAX: usize = 1_024;

/// Places that a tenant may hold for each one that is free, of those that tenants share: alone it has four
/// in five, and leaves every newcomer some.
pub const PLACES_PER_FREE: usize = 4;

/// Request line and headers; a slower client is cut off (slow-loris).
pub const HTTP_HEADER_DEADLINE: Duration = Duration::from_secs(15);

/// Pause after a connection could not be accepted (no file descriptors left, usually).
pub const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A whole body of `HTTP_BODY_BYTES_MAX`: 4 MiB over a 1 Mbit/s line takes 34 s.
pub const HTTP_BODY_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of a refused body that are read and thrown away, so that the client sees the answer and not
/// a reset connection. Beyond it the connection is simply closed.
pub const HTTP_DISCARD_BYTES_MAX: usize = 64 << 20;

/// Time given to reading a refused body.
pub const HTTP_DISCARD_DEADLINE: Duration = Duration::from_secs(5);

/// A comment is sent on an idle event stream this often, so that proxies keep it open.
pub const SSE_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How long a stream's answer may wait for its first event before the headers are sent anyway.
/// Longer than `REPLICA_WAIT_MAX`, so that "no replica" is still a 503 and not a broken stream.
pub const FIRST_EVENT_WAIT: Duration = Duration::from_secs(22);

/// Events of one request's choices between their sessions and its answer.
pub const SESSION_EVENTS_MAX: usize = 256;

/// The usage record of one request becoming durable.
pub const USAGE_COMMIT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a request waits for the model's tokeniser to be loaded; loading goes on after it.
pub const TEXT_LOAD_WAIT: Duration = Duration::from_secs(20);

/// Tokenisers kept in memory (a few tens of MB each).
pub const TEXTS_MAX: usize = 16;

/// Bodies above this are parsed off the async runtime: 64 KiB of JSON takes under 0.5 ms.
pub const INLINE_JSON_BYTES_MAX: usize = 64 << 10;

/// Prompts above this many bytes wait for one of `LONG_PROMPTS_AT_ONCE` places to be tokenised: 4 MiB
/// takes seconds of a core, which the ranks on this machine need too.
pub const LONG_PROMPT_BYTES: usize = 256 << 10;
pub const LONG_PROMPTS_AT_ONCE: usize = 2;

/// How long a long prompt waits for its place.
pub const LONG_PROMPT_WAIT: Duration = Duration::from_secs(30);

/// `stop_token_ids` in one request.
pub const STOP_TOKENS_MAX: usize = 64;
// --- command line -----------------------------------------------------------------------------

/// One question of the command line to a coordinator, and its answer.
pub const CLIENT_ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// One question to one of several coordinators: each answers, with old news if need be, within
/// `READ_BARRIER_DEADLINE` and `STATUS_DEADLINE`.
pub const CLIENT_LOOK_DEADLINE: Duration = Duration::from_secs(8);

/// One try of a write at one coordinator: the group answers within `PROPOSE_DEADLINE`.
pub const CLIENT_TRY_DEADLINE: Duration = Duration::from_secs(15);

/// How often a write in doubt goes round all addresses, and the pause before it does again: an election
/// takes less than two of them.
pub const CLIENT_WRITE_ROUNDS: usize = 4;
pub const CLIENT_RETRY_PAUSE: Duration = Duration::from_millis(700);

/// `PUT /admin/v1/deployments`: the coordinator may have to fetch the model before it answers.
pub const CLIENT_DEPLOY_DEADLINE: Duration = Duration::from_secs(1_800);

/// Longest silence of a stream of tokens before the command line gives it up: longer than a
/// replica's recovery (`REPLICA_WAIT_MAX`) and a long prompt's prefill on a slow machine.
pub const CLIENT_STREAM_SILENCE_MAX: Duration = Duration::from_secs(180);

/// Largest answer (not stream) that the command line reads: a plan of 1,024 ranks is far below.
pub const CLIENT_ANSWER_BYTES_MAX: u64 = 16 << 20;

/// Largest line of a stream of events. Logprobs of one token take a few KiB.
pub const CLIENT_EVENT_BYTES_MAX: usize = 4 << 20;

/// Events of one stream read but not yet shown.
pub const CLIENT_STREAM_EVENTS_MAX: usize = 256;

/// How often `up` looks again at what it waits for. A start from a warm cache has 3 s in all.
pub const CLIENT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// A coordinator that `up` started must listen within this; it opens two ports and a small log.
pub const COORDINATOR_START_DEADLINE: Duration = Duration::from_secs(30);

/// A process whose starter vanished (its lifeline closed) ends by itself within this.
pub const LIFELINE_EXIT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a step that is given up may take to put its things away.
pub const CANCEL_GRACE: Duration = Duration::from_secs(1);

/// A process told to stop may finish its running requests (`DRAIN_DEADLINE`) and then clean up;
/// after this `up` ends it.
pub const CHILD_STOP_DEADLINE: Duration = Duration::from_secs(15);

/// How long `up` waits for processes it killed to be gone: the kernel only has to free memory.
pub const CHILD_KILL_DEADLINE: Duration = Duration::from_secs(5);

/// A child of `up` that died is started again at most this often within the window; more is a
/// fault that restarting does not mend.
pub const CHILD_RESTARTS_MAX: usize = 5;
pub const CHILD_RESTART_WINDOW: Duration = Duration::from_secs(60);

/// Wait before a restart; doubles with each restart in the window.
pub const CHILD_RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
pub const CHILD_RESTART_DELAY_MAX: Duration = Duration::from_secs(5);

/// Exits and signals that wait to be looked at by `up`.
pub const SUPERVISOR_EVENTS_MAX: usize = 1_024;

/// Requests `bench serve` keeps open at once, a thread each.
pub const BENCH_CONCURRENCY_MAX: usize = 1_024;

// --- engine -----------------------------------------------------------------------------------

/// Tokens of one KV page. 16 keeps the waste per sequence under 16 tokens and a page of one head
/// (64 wide, f16) at 2 KiB.
pub const PAGE_TOKENS: usize = 16;

/// Tokens of one step (decode tokens plus prefill chunks).
pub const STEP_TOKENS_MAX: usize = 512;

/// Sequences of one step.
pub const STEP_SEQUENCES_MAX: usize = 128;

/// Sequences waiting at one driver; of one more, that of the tenant with the most for its weight is
/// answered "overloaded".
pub const WAITING_SEQUENCES_MAX: usize = 1_024;

/// Tenants that have nothing left at a driver and are remembered there, because they got more than those
/// who wait. As many as may wait; forgetting the one that is ahead by the least costs the others the
/// least.
pub const TENANTS_AHEAD_MAX: usize = WAITING_SEQUENCES_MAX;

/// Prefill tokens of a step while other sequences decode, before it is known how long steps take: on a slow
/// core 128 rows take about 0.2 s.
pub const PREFILL_BESIDE_DECODE_TOKENS: usize = 128;

/// Fewest prefill tokens of such a step: as many rows as the kernels take together.
pub const PREFILL_BESIDE_DECODE_TOKENS_MIN: usize = 8;

/// How long such a step should be at most, and so the gap that a running stream sees because others' prompts
/// came.
pub const STEP_BESIDE_DECODE_MAX: Duration = Duration::from_millis(90);

/// Tokens that are guessed ahead of one sequence in one step (speculative decoding): of what repeats at all,
/// more hardly ever come true in a row.
pub const DRAFT_TOKENS_MAX: u8 = 8;

/// How far back a sequence is searched for what may follow, in tokens: some microseconds.
pub const DRAFT_LOOKBACK_TOKENS: usize = 8_192;

/// Logits of one step, rows x vocabulary: 64 MiB of f32, and as much again where they are gathered.
/// Prompt scoring asks for a row per token, so its chunks shrink to stay under this.
pub const STEP_LOGITS_MAX: usize = 16 << 20;

/// Largest encoded step plan or step result. Tokens, pages and results of a step are far smaller;
/// most is the state of sequences that enter, see `STEP_ADDED_BYTES_MAX`.
pub const STEP_PLAN_BYTES_MAX: usize = 16 << 20;

/// Biases and penalty counts of the sequences one step adds (the first is always taken: at most a
/// vocabulary of counts, 2 MiB at 256 Ki tokens).
pub const STEP_ADDED_BYTES_MAX: usize = 4 << 20;

/// Requests handed to the driver's thread and not yet taken by it, which it does before each step.
pub const ENGINE_INBOX_MAX: usize = WAITING_SEQUENCES_MAX;

/// Events kept for a client whose queue is full, while its sequence is paused: what steps already
/// in flight may still bring (prompt scores and a token each), and the last event.
pub const STREAM_BACKLOG_MAX: usize = 256;

/// How long a sequence waits, in the driver, the fleet or the gateway, for a client that does not
/// read before it is cancelled: it holds KV pages that others wait for.
pub const CLIENT_STALL_MAX: Duration = Duration::from_secs(30);

/// How long stopping a rank waits for its thread, which looks at the abort flag between steps and
/// in every wait. Longer than a step of a small model; a thread that is later still is left to end
/// by itself.
pub const RANK_STOP_DEADLINE: Duration = Duration::from_secs(5);

/// Ranks of one stage, and stages of one replica.
pub const TENSOR_PARALLEL_MAX: usize = 64;
pub const PIPELINE_PARALLEL_MAX: usize = 64;

/// How often an idle compute thread looks for work before it gives its core away: about 10 us, a
/// few times the gap between two regions of a step.
pub const COMPUTE_SPINS: u32 = 256;

/// How often it then yields before it parks: some 100 us, the gap between two steps.
pub const COMPUTE_YIELDS: u32 = 256;

/// Widest attention head: the attention kernel keeps eight such rows on its stack.
pub const HEAD_DIM_MAX: usize = 256;

// --- model files ------------------------------------------------------------------------------

/// Counts in a GGUF header, far above any real file and far below what could exhaust memory.
pub const GGUF_TENSORS_MAX: u64 = 65_536;
pub const GGUF_METADATA_MAX: u64 = 65_536;
pub const GGUF_ARRAY_MAX: u64 = 4 << 20;
pub const GGUF_STRING_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a GGUF header in all (SmolLM2's is 1.7 MB).
pub const GGUF_HEADER_BYTES_MAX: u64 = 256 << 20;
/// Bytes of a safetensors header (its own format allows 100 MB).
pub const SAFETENSORS_HEADER_BYTES_MAX: u64 = 100 << 20;

// --- coordinator state ------------------------------------------------------------------------

/// Proposals waiting for the journal's thread; a proposer waits for room.
pub const JOURNAL_QUEUE_MAX: usize = 1_024;

/// Proposals that share one disk sync. A sync takes 150-250 us; a few hundred small inserts less.
pub const JOURNAL_BATCH_MAX: usize = 256;

/// Commands between snapshots: replaying this many takes milliseconds.
pub const JOURNAL_SNAPSHOT_EVERY: u64 = 4_096;

/// Page cache of the journal's database. The working set is the log's tail.
pub const JOURNAL_CACHE_BYTES: usize = 16 << 20;

/// Making one command durable, queueing included. A healthy disk takes under a millisecond.
pub const PROPOSE_DEADLINE: Duration = Duration::from_secs(10);

/// Outcomes of proposals remembered by their ids, so that a proposal made again is not applied again;
/// one whose id may have been forgotten is refused. A retry comes within `PROPOSE_DEADLINE`: this
/// covers 13,000 proposals a second for that long, in some 20 MB.
pub const PROPOSAL_WINDOW: u64 = 131_072;

/// Bytes of a written state. A row takes some 100 bytes: 40 million of them, far above any ledger we
/// keep, and a bound on what a peer's snapshot may make us read.
pub const STATE_BYTES_MAX: u64 = 4 << 30;

/// Settled requests kept one by one, some 250 bytes each: at 100 a second three hours', at 10,000 a second
/// 100 seconds', far longer than any report of one is late. Sums of them are kept beyond that. A
/// coordinator that starts reads and indexes all of them: with a million that takes it some 3 s.
pub const REQUEST_ROWS_MAX: usize = 1_000_000;

/// Postings kept one by one, some 100 bytes each; older ones stand in the opening balances and in the
/// sums by month. As many as requests, for the same reason.
pub const LEDGER_POSTINGS_MAX: usize = 1_000_000;

/// Settlements kept for exports, some 60 bytes each: at 100 a second half an hour's, at 1,000 a second
/// three minutes', which an export that looks every few seconds never misses.
pub const SETTLEMENTS_KEPT: usize = 200_000;

/// Settlements in one file of an export where nobody said how many, some 5 MiB as JSON; and at most, as
/// the exporter holds a file in memory.
pub const EXPORT_FILE_ROWS: u64 = 10_000;
pub const EXPORT_FILE_ROWS_MAX: u64 = 100_000;

/// Largest file of an export that is read again: `EXPORT_FILE_ROWS_MAX` at 1 KiB, with room to spare.
pub const EXPORT_FILE_BYTES_MAX: u64 = 256 << 20;

/// One question to an object store: a file of `EXPORT_FILE_ROWS_MAX` at 1 MiB a second.
pub const EXPORT_STORE_DEADLINE: Duration = Duration::from_secs(120);

/// Rows forgotten as one is added: more than one, so that a state with more than it may keep (of an
/// older release) comes down to it; few, so that no command takes long.
pub const FORGOTTEN_AT_ONCE: usize = 8;

/// Rows of a page of the billing API where nobody said how many, and at most.
pub const BILLING_PAGE_ROWS: u64 = 100;
pub const BILLING_PAGE_ROWS_MAX: u64 = 1_000;

/// Days of usage in one question: three years' at their day, of 100 models and keys 100,000 sums.
pub const USAGE_DAYS_ASKED_MAX: u64 = 1_100;

/// Rows that one page looks at where it shows only some of them: a few milliseconds'. Then the page is
/// short, and its cursor goes on from there.
pub const REQUESTS_LOOKED_AT_MAX: usize = 20_000;

/// Postings that one page of the ledger looks at, for the same reason.
pub const POSTINGS_LOOKED_AT_MAX: usize = 20_000;

/// How long usage is kept by the hour: a month and its statement. By the day it is kept for ever.
pub const USAGE_HOURS_KEPT: u64 = 40 * 24;

/// Attempts under one idempotency key that are charged once together. A client that retries for
/// longer is not retrying: a further attempt is a request of its own.
pub const REQUEST_ATTEMPTS_MAX: usize = 16;

/// Providers whose work on one request is told apart: a replica of 64 ranks, each of another one.
pub const REQUEST_PROVIDERS_MAX: usize = 64;

/// Items of one report of a gateway; at 300 bytes each it fits `RAFT_ENTRY_BYTES_MAX`.
pub const REPORT_ITEMS_MAX: usize = 2_048;

/// How long a gateway's life lasts that is not renewed. Gateways renew every second: a change of the
/// leader, 2 s, and a retry or two fit in.
pub const GATEWAY_LEASE: Duration = Duration::from_secs(10);

/// How much later than that its leases are taken back: the gateway stops using them by its own clock,
/// which may run slower.
pub const GATEWAY_LEASE_SKEW: Duration = Duration::from_secs(5);

/// Things that requests want told to the group and that wait for a report: twice the requests there can
/// be, as each asks for at most its tenant's and its key's part.
pub const REPORT_QUEUE_MAX: usize = 2 * HTTP_REQUESTS_MAX;

/// Reports of one gateway under way at once: while one is on its way to the disks the next are gathered;
/// more of them would only be smaller.
pub const REPORTS_IN_FLIGHT: usize = 4;

/// How often the group is told what was streamed, and that this gateway lives. What is told has been
/// delivered one look before, so that a crash forgets a second's tokens at most.
pub const CHECKPOINT_INTERVAL: Duration = Duration::from_millis(500);

/// Pause before a gateway tries again to tell the group something.
pub const LIFE_RETRY: Duration = Duration::from_millis(200);

/// How often the leader looks for gateways whose lives are over.
pub const REAP_INTERVAL: Duration = Duration::from_secs(1);

/// How long a request waits to be let in while nobody leads: an election and a half.
pub const ADMISSION_DEADLINE: Duration = Duration::from_secs(5);

/// Requests' worth that a gateway asks for beforehand, at most: at 1,000 requests a second and 5 ms for an
/// ask it is used up in 50 asks.
pub const LEASE_RESERVE_MAX: u64 = 256;

/// Tokens that a request must be able to generate to be let in, where it left that number to us.
pub const HOLD_TOKENS_LEAST: u32 = 16;

/// When to come back where as many requests run as may.
pub const CONCURRENCY_RETRY: Duration = Duration::from_secs(1);

/// A lease is at most one part in so many of what is left, so that other gateways find some too; but
/// always what its request needs.
pub const LEASE_PARTS: u64 = 8;

/// Largest limit on requests or tokens that can be set; beyond it none is needed.
pub const RATE_LIMIT_MAX: u64 = 1_000_000_000_000;

/// Largest weight in fair queuing.
pub const WEIGHT_MAX: u32 = 1_000;

/// Audit records kept in the state, some 40 MB; older ones live on in exports, which the chain of
/// hashes ties to these.
pub const AUDIT_RECORDS_MAX: u64 = 100_000;

/// Bytes of each text of an audit record; longer ones are cut.
pub const AUDIT_TEXT_BYTES_MAX: usize = 512;

/// Coordinators of a group: five voters, and as many again to take their places.
pub const COORDINATORS_MAX: usize = 10;

// --- replicated log ---------------------------------------------------------------------------

/// One file of the write-ahead log, zero-filled when it is made: some 10 ms of a disk's time every
/// 100,000 small commands, and the most that stays behind when a snapshot lets the rest go.
pub const WAL_SEGMENT_BYTES: u64 = 16 << 20;

/// One record of the write-ahead log: one batch of entries. Far above what Raft hands over at once;
/// what a reader of the log allocates for one file is bounded by it.
pub const WAL_RECORD_BYTES_MAX: usize = 64 << 20;

/// What a snapshot says of itself before its body: position and members, a few hundred bytes.
pub const SNAPSHOT_META_BYTES_MAX: usize = 64 << 10;

/// One chunk of a snapshot, checksummed on its own: what a reader holds before it trusts it.
pub const SNAPSHOT_CHUNK_BYTES: usize = 1 << 20;

/// Largest snapshot file that is written or taken from a peer: eight times that of 1,000,000 ledger
/// rows; a peer must not fill our disk.
pub const SNAPSHOT_BYTES_MAX: u64 = 4 << 30;

/// Snapshot bytes written between two syncs: about two milliseconds of the disk, so that a commit that
/// comes meanwhile does not wait behind gigabytes.
pub const SNAPSHOT_SYNC_BYTES: u64 = 1 << 20;

// --- placement --------------------------------------------------------------------------------

/// Replicas of one deployment.
pub const REPLICAS_MAX: u16 = 64;

/// Full contexts a replica's KV pages should hold together; more only help very large batches.
pub const KV_CONTEXTS_TARGET: u64 = 16;

/// KV pages take at most one part in this many of a worker's memory: the rest is for weights, for
/// buffers and for whoever else lives on the machine.
pub const KV_MEMORY_DIVISOR: u64 = 4;

/// Fewest KV pages worth serving with: 256 tokens.
pub const KV_PAGES_MIN: u64 = 16;

/// Activations, logits and link buffers of one rank: two steps of `STEP_TOKENS_MAX` rows of a
/// 4,096-wide model, and one row of logits for each sequence of a step.
pub const RANK_WORKING_BYTES: u64 = 64 << 20;

// --- fleet ------------------------------------------------------------------------------------

/// With workers missing for some replica, how long the fleet must be quiet before the others are
/// planned: workers that start together arrive within this, and plan better together.
pub const PLAN_SETTLE: Duration = Duration::from_millis(500);

/// How long a coordinator that begins to lead, or starts, waits for the workers of running replicas
/// before it takes those that are missing for gone. A worker notices a coordinator that died without a
/// word at most `PEER_SILENCE_MAX` after its last heartbeat, and redials within `RECONNECT_DELAY_MAX`
/// and a handshake.
pub const LEADER_SETTLE: Duration = Duration::from_secs(5);

/// How long a coordinator that does not know a worker waits for its own copy of the state to catch
/// up: the worker may have joined at another coordinator a moment ago.
pub const MEMBER_WAIT: Duration = Duration::from_secs(2);

/// How often the reconciler looks at the time. Events do not wait for it.
pub const RECONCILE_INTERVAL: Duration = Duration::from_millis(100);

/// Wait before a replica's second attempt after a failure; doubles with each further failure.
pub const REPLAN_BACKOFF_MIN: Duration = Duration::from_millis(500);
/// The longest such wait: a broken model is tried twice a minute.
pub const REPLAN_BACKOFF_MAX: Duration = Duration::from_secs(30);

/// A replica that was ready for this long starts with a clean record when it fails.
pub const REPLICA_SOUND_AFTER: Duration = Duration::from_secs(30);

/// A starting replica none of whose ranks reports any progress for this long has failed. Long,
/// because fetching through a Python wheel shows no progress.
pub const REPLICA_START_SILENCE_MAX: Duration = Duration::from_secs(600);

/// An idle replica is asked for one token this often.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// One probe, queueing included.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(20);
/// A replica that made no token for this long is not ready, whatever its ranks say.
pub const REPLICA_FRESH_MAX: Duration = Duration::from_secs(30);
/// A replica that made no token for this long is given a new plan; beyond `STEP_DEADLINE`, so that
/// its ranks had the time to find the fault themselves.
pub const REPLICA_STUCK_MAX: Duration = Duration::from_secs(90);

/// Orders waiting for one worker's control stream; a worker further behind is disconnected.
pub const WORKER_ORDERS_MAX: usize = 64;

/// Connections of all kinds a coordinator serves at once.
pub const CONTROL_CONNECTIONS_MAX: usize = 2_048;

/// Sequences a coordinator carries at once.
pub const DISPATCH_TASKS_MAX: usize = 4_096;

/// Wait between two looks for a replica that takes a sequence which was refused or cut off.
pub const DISPATCH_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Silence of a driver in mid-sequence. Long, because a sequence may wait its turn behind a full
/// waiting room; a driver that died is noticed by its connection.
pub const GENERATE_SILENCE_MAX: Duration = Duration::from_secs(600);

/// Resolving a model again after it could not be opened at a coordinator's start.
pub const MODEL_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Join tokens: uses and life.
pub const TOKEN_USES_MAX: u32 = 10_000;
pub const TOKEN_TTL_SECONDS_MAX: u64 = 366 * 86_400;

/// Bytes of a deployment's, tenant's, key's or provider's name.
pub const NAME_BYTES_MAX: usize = 128;

/// Models that a key names. Each is compared at each request.
pub const KEY_MODELS_MAX: usize = 64;

/// Longest time for which a key and the one that takes its place both work: a quarter of a year, in which
/// the slowest of rollouts is done.
pub const KEY_OVERLAP_SECONDS_MAX: u64 = 92 * 86_400;

/// Bytes of the reason of a movement of money. It stays in the ledger.
pub const REASON_BYTES_MAX: usize = 256;

/// Tenants with a webhook; with `WEBHOOK_EVENTS_MAX` waiting events each, of 150 bytes, 48 MB of state.
pub const WEBHOOKS_MAX: usize = 10_000;

/// Events of one tenant that wait to be delivered: a month makes four, and the rest are tests. More make
/// the oldest go.
pub const WEBHOOK_EVENTS_MAX: usize = 32;

/// What a tenant may do to its webhook in a minute, all at once after a quiet one: each is a write of the
/// group's, and a record of its audit log.
pub const WEBHOOK_ACTS_PER_MINUTE: u64 = 30;

/// Statements that a tenant is told of at once, after a time in which nothing ran: a year's.
pub const WEBHOOK_STATEMENTS_AT_ONCE: u64 = 12;

/// Bytes of a webhook's address; what servers and browsers take.
pub const WEBHOOK_URL_BYTES_MAX: usize = 2_048;

/// Bytes of a secret that signs: as many as the digest that it keys. Standard Webhooks asks for 24 to 64.
pub const WEBHOOK_SECRET_BYTES: usize = 32;

/// Bytes of what is kept of why an event was not delivered.
pub const WEBHOOK_ERROR_BYTES_MAX: usize = 200;

/// How often the leader looks for events to deliver.
pub const WEBHOOK_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// One try to deliver an event, from the name look-up to the answer's status. A receiver that has more to do does
/// it after it has answered.
pub const WEBHOOK_DEADLINE: Duration = Duration::from_secs(10);

/// Events on their way at once, one of a tenant: with receivers that take 0.2 s, 160 a second.
pub const WEBHOOKS_AT_ONCE: usize = 32;

/// Bytes of the head of a receiver's answer. Its body is not read.
pub const WEBHOOK_ANSWER_BYTES_MAX: usize = 16 << 10;

/// Pauses after an event's failed tries, by which Standard Webhooks suggests to go: ten tries in three days
/// and four hours, then it is given up.
pub const WEBHOOK_PAUSES: [Duration; 9] = [
    Duration::from_secs(5),
    Duration::from_secs(5 * 60),
    Duration::from_secs(30 * 60),
    Duration::from_secs(2 * 3_600),
    Duration::from_secs(5 * 3_600),
    Duration::from_secs(10 * 3_600),
    Duration::from_secs(14 * 3_600),
    Duration::from_secs(20 * 3_600),
    Duration::from_secs(24 * 3_600),
];

/// Files of one sharded safetensors model (the largest public ones have under 200).
pub const SAFETENSORS_SHARDS_MAX: usize = 1_024;
/// Bytes of a model folder's JSON files (tokenizer.json of a 256k vocabulary is 34 MB).
pub const MODEL_JSON_BYTES_MAX: u64 = 128 << 20;
/// Bytes of a piece of a SentencePiece vocabulary: joining costs as much a step (the longest known
/// have some 100).
pub const SENTENCE_PIECE_BYTES_MAX: usize = 1_024;
/// `general.alignment` of a GGUF file; 32 is usual, a page of 64 KiB the largest use.
pub const GGUF_ALIGNMENT_MAX: u64 = 1 << 16;

/// A model's own numbers: some ten times the largest public model's, and small enough that no
/// product of two of them overflows u64.
pub const MODEL_LAYERS_MAX: u32 = 2_048;
pub const MODEL_WIDTH_MAX: u32 = 1 << 20;
pub const MODEL_HEADS_MAX: u32 = 4_096;
pub const MODEL_VOCAB_MAX: u32 = 1 << 22;
/// Experts of a layer (the largest public models have 512).
pub const MODEL_EXPERTS_MAX: u32 = 4_096;
/// Experts of all layers: each is three entries of a manifest, some 300 bytes, even where a file has
/// one tensor for all of a layer.
pub const MODEL_EXPERTS_TOTAL_MAX: u32 = 1 << 18;
pub const MODEL_CONTEXT_MAX: u32 = 1 << 27;

// --- fetching models --------------------------------------------------------------------------

/// Reaching a server that has a model (name look-up and connection, each).
pub const FETCH_CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// A download without a byte for this long has broken off.
pub const FETCH_STALL_MAX: Duration = Duration::from_secs(20);
/// Tries of one download; each goes on where the last broke off.
pub const FETCH_ATTEMPTS_MAX: u32 = 4;
/// One read or write of a download.
pub const FETCH_BUFFER_BYTES: usize = 1 << 18;
/// A whole `pip download`: 2 GB at 2 MB/s.
pub const PIP_DEADLINE: Duration = Duration::from_secs(1_000);
/// `pip` without a new byte: it resolves names and retries on its own for up to a minute.
pub const PIP_STALL_MAX: Duration = Duration::from_secs(75);
/// End of pip's output that is looked at for its error.
pub const PIP_LOG_TAIL_BYTES: usize = 4_096;
/// Waiting for another process that fetches the same model.
pub const MODEL_LOCK_WAIT_MAX: Duration = Duration::from_secs(1_800);
/// Largest model file: eight times the largest public one (1.4 TB in one file is unheard of).
pub const MODEL_FILE_BYTES_MAX: u64 = 8 << 40;
/// Left free on the cache's disk.
pub const DISK_RESERVE_BYTES: u64 = 64 << 20;

// --- links between ranks ------------------------------------------------------------------------

/// How long a rank's thread polls for its peer before it offers the core at each poll. Short even
/// where every thread should have a core: the scheduler does put two ranks on one, and then all
/// that a rank spins its peer stands still. Measured at tp 2 on two busy cores: 1 ms of spinning
/// gives 8-25 tok/s, 5 us gives 85-140.
pub const LINK_SPIN: Duration = Duration::from_micros(5);

/// The same where compute threads outnumber cores: only what a running peer needs to answer.
pub const LINK_SPIN_CROWDED: Duration = Duration::from_micros(3);

/// How long it then polls with `sched_yield`, before it parks (60-100 us to wake). Covers the
/// imbalance of two ranks' shares of a small model's layer; longer only keeps others off the core.
pub const LINK_YIELD: Duration = Duration::from_micros(100);

/// Longest sleep of a parked rank: how late an abort or a killed peer is noticed.
pub const LINK_PARK_SLICE: Duration = Duration::from_millis(100);

/// Bytes of a shared-memory ring, and of the window of a QUIC link. Two fit a core's L2 cache beside
/// its work, and the 28 links of 8 ranks (7 MiB) fit Docker's 64 MiB `/dev/shm`. Power of two.
pub const LINK_RING_BYTES: usize = 128 << 10;

/// Bytes of the ring that carries activations to the next stage: a whole prefill chunk of a small
/// model, so that a stage can go on while the next one computes. Power of two.
pub const STAGE_RING_BYTES: usize = 1 << 20;

/// Bytes of the unused direction of a one-way link: one page. Power of two.
pub const ONE_WAY_BACK_BYTES: usize = 4 << 10;

/// Bytes of a large write that are published at once, so that the reader copies meanwhile.
pub const LINK_PUBLISH_BYTES: usize = 16 << 10;

/// Above this, more than two ranks all-reduce by segments (two hops, less traffic). 16 KiB is a
/// decode step of 4 rows of a 1,024-wide model.
pub const ALL_REDUCE_DIRECT_BYTES: usize = 16 << 10;

/// Bytes of one frame of a gather; a step's logits may be larger than a frame.
pub const GATHER_CHUNK_BYTES: usize = 1 << 20;

/// Bytes by which a received frame's buffer grows as they arrive.
pub const LINK_GROW_BYTES: usize = 1 << 20;

/// A peer that opened a link stream says within this what it is for.
pub const LINK_HELLO_DEADLINE: Duration = Duration::from_secs(5);

/// Link streams being greeted at once, streams held for ranks that have not asked yet, and those
/// of one worker: a replica of 64 x 64 has under 70 links to any rank.
pub const LINK_HELLOS_MAX: usize = 256;
pub const INCOMING_LINKS_MAX: usize = 1_024;
pub const INCOMING_LINKS_PER_WORKER_MAX: usize = 128;

/// How long a stream is held for a rank that has not asked for it; the dialler gives up then too.
pub const INCOMING_LINK_HOLD: Duration = MESH_DEADLINE;

/// How long a link that was let go keeps its connection so that its last bytes arrive.
pub const LINK_LINGER_DEADLINE: Duration = Duration::from_secs(2);

/// How often a rank looks whether its peer joined their shared memory, and dials again.
pub const MESH_POLL: Duration = Duration::from_millis(2);
pub const MESH_REDIAL: Duration = Duration::from_millis(100);

/// A shared-memory file that no process holds and that is older than this was left by a kill in
/// the instant between its creation and its lock.
pub const SHM_UNLOCKED_AGE_MAX: Duration = Duration::from_secs(60);
// --- chat templates ---------------------------------------------------------------------------

/// Instructions one rendering may take (minijinja's fuel). Real templates take some 30 a message.
pub const CHAT_TEMPLATE_FUEL: u64 = 20_000_000;
/// Bytes of a rendered prompt: all messages of the largest body, and the template's own words.
pub const CHAT_TEMPLATE_OUTPUT_BYTES_MAX: usize = 4 * HTTP_BODY_BYTES_MAX;

// --- the replicated log -------------------------------------------------------------------------

/// Raft's unit of time. Elections and heartbeats are counted in it.
pub const RAFT_TICK: Duration = Duration::from_millis(50);

/// A follower that hears nothing for 10 to 20 ticks (500 ms to 1 s, drawn anew for each term) asks to
/// lead. Long against a disk sync and a scheduling delay on a busy machine, short against the 2 s
/// within which a new leader should stand.
pub const RAFT_ELECTION_TICKS: usize = 10;

/// A leader says that it lives every other tick: five beats to a follower's patience.
pub const RAFT_HEARTBEAT_TICKS: usize = 2;

/// How often the leader compares the group's members with the state's wish for them.
pub const RAFT_ROSTER_TICKS: u64 = 4;

/// How long a member that was removed goes on voting, 3 s: those that do not know yet that the change is
/// committed may need its vote to learn it, and an election takes one.
pub const RAFT_REMOVED_TICKS: u64 = 60;

/// Bytes of entries in one append message, with room to spare: four entries of the largest size.
pub const RAFT_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of proposals put into one log entry. The largest command, a plan of 1,024 ranks, has 150 KiB;
/// a thousand small ones have as much.
pub const RAFT_ENTRY_BYTES_MAX: usize = 1 << 20;

/// Append messages under way to one follower without an answer.
pub const RAFT_INFLIGHT_MAX: usize = 256;

/// Bytes of entries that are proposed and not committed; above it proposals wait.
pub const RAFT_UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;

/// A newcomer that is at most this many entries behind may vote: it catches up in one round.
pub const RAFT_LEARNER_LAG_MAX: u64 = 1_000;

/// Bytes of log between snapshots. Replaying 64 MiB takes well under a second.
pub const RAFT_SNAPSHOT_LOG_BYTES: u64 = 64 << 20;

/// Bytes of log kept behind a snapshot, so that a follower that restarted gets entries and not the
/// whole state.
pub const RAFT_KEEP_LOG_BYTES: usize = 16 << 20;

/// Jobs waiting for the member's thread; whoever has one more waits for room.
pub const RAFT_QUEUE_MAX: usize = 8_192;

/// Jobs that one step of the member takes in, and that share its disk sync.
pub const RAFT_BATCH_MAX: usize = 4_096;

/// Messages, and bytes of entries, waiting for one peer's connection; more are lost, and the leader
/// probes instead of streaming.
pub const RAFT_OUTBOX_MESSAGES_MAX: usize = 4_096;
pub const RAFT_OUTBOX_BYTES_MAX: usize = 32 << 20;

/// Bytes that go to a peer's connection in one write.
pub const RAFT_WRITE_BYTES: usize = 1 << 20;

/// A peer that takes no bytes for this long is dialled anew.
pub const RAFT_WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// First and longest wait between two tries to reach a peer. The longest is below an election timeout,
/// so that a peer that came back hears its leader before it asks to lead.
pub const RAFT_RECONNECT_DELAY_MIN: Duration = Duration::from_millis(20);
pub const RAFT_RECONNECT_DELAY_MAX: Duration = Duration::from_millis(320);

/// Wait before a proposal that found no leader is tried again; news of a leader ends it earlier.
pub const PROPOSE_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// One try to have the leader apply a proposal of another member; leaders change within 2 s.
pub const FORWARD_DEADLINE: Duration = Duration::from_secs(3);

/// Asking the leader how the group is.
pub const STATUS_DEADLINE: Duration = Duration::from_secs(1);

/// Waiting until this member's state is as new as the group's, and one try of it.
pub const READ_BARRIER_DEADLINE: Duration = Duration::from_secs(5);
pub const READ_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Handing leadership over before a stop: one round of messages and an election without a timeout.
pub const STEP_DOWN_DEADLINE: Duration = Duration::from_secs(1);

/// A whole snapshot on its way to a member: 4 GiB at 10 MB/s.
pub const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(600);

/// A sender of a snapshot that brings no byte for this long has broken off.
pub const SNAPSHOT_SILENCE_MAX: Duration = Duration::from_secs(20);

/// What of a snapshot is sent at once, and the least pause after it: at most 64 MB/s, so that 4 GiB take a
/// minute, and the cores and the network are there for commits in between.
pub const SNAPSHOT_PIECE_BYTES: usize = 256 << 10;
pub const SNAPSHOT_PIECE_PAUSE: Duration = Duration::from_millis(4);

/// Pieces of a snapshot that have come and wait for the disk, of at most `SNAPSHOT_CHUNK_BYTES` each.
pub const SNAPSHOT_PIECES_MAX: usize = 4;

/// How long a coordinator that starts waits until its log is replayed: a snapshot and 64 MiB or two of
/// log, on a machine that is busy with much else.
pub const REPLAY_DEADLINE: Duration = Duration::from_secs(60);

/// How long a coordinator that joins waits for the group's state: a snapshot and a change of members.
pub const LET_IN_DEADLINE: Duration = Duration::from_secs(120);

// --- administration -----------------------------------------------------------------------------

/// Characters of an `Idempotency-Key`; what clients draw has 20 to 60.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 128;

/// Audit records of one page of an export: at 2.5 KiB each at most, 5 MiB.
pub const AUDIT_PAGE_RECORDS: usize = 2_000;

/// Pieces of a backup waiting for a client that reads slower than the state is written; one has up to
/// `SNAPSHOT_CHUNK_BYTES`.
pub const BACKUP_PIECES_MAX: usize = 4;

/// How long the newer CA is trusted everywhere before it signs, even where all nodes have confirmed:
/// what was being dialled meanwhile is connected by then.
pub const AUTHORITY_SETTLE: Duration = Duration::from_secs(30);

/// How often the leader looks whether a rotation of the CA can go on.
pub const AUTHORITY_INTERVAL: Duration = Duration::from_secs(5);

/// One batch of traces on its way to a collector; while it is sent, the next ones wait.
pub const TRACES_SEND_DEADLINE: Duration = Duration::from_secs(10);

/// What a collector says of a batch: a few words.
pub const TRACES_ANSWER_BYTES_MAX: u64 = 64 << 10;

/// A coordinator's last traces at its end: they are worth no longer wait.
pub const TRACES_FLUSH_DEADLINE: Duration = Duration::from_secs(2);
