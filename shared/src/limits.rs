//! Every bound in the system, with the reason for its value. A queue, frame, batch or wait whose
//! bound is not here is a defect.

use std::time::Duration;

// --- frames -----------------------------------------------------------------------------------

/// Largest control-plane frame (registration, assignment, heartbeat). A plan for 1,024 ranks is
/// about 150 KiB; four times that leaves room without letting a peer make us allocate much.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1 << 20;

/// Largest generate frame. A prompt of `PROMPT_TOKENS_MAX` ids is 4 MiB.
pub const GENERATE_FRAME_BYTES_MAX: usize = 8 << 20;

/// Largest data-plane frame: a prefill chunk's activations, `STEP_TOKENS_MAX` x 16,384 f32.
pub const LINK_FRAME_BYTES_MAX: usize = 64 << 20;

/// Largest join frame: a token, a certificate request or a certificate; each is under 2 KiB. Small,
/// because a joiner is not yet anybody.
pub const JOIN_FRAME_BYTES_MAX: usize = 16 << 10;

// --- connections ------------------------------------------------------------------------------

/// QUIC keep-alive: three are sent before `PEER_SILENCE_MAX` is over.
pub const KEEP_ALIVE_INTERVAL: Duration = Duration::from_millis(800);

/// Handshakes in progress at one endpoint; more are refused, so that a flood costs bounded memory.
pub const HANDSHAKES_MAX: usize = 256;

/// Addresses tried for one name.
pub const DIAL_ADDRESSES_MAX: usize = 4;

/// Saying goodbye when an endpoint closes; peers that do not hear it notice by `PEER_SILENCE_MAX`.
pub const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

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

/// Largest UDP payload tried on a path: a 9,000-byte jumbo frame less its headers.
pub const UDP_PAYLOAD_BYTES_MAX: u16 = 8_900;

// --- certificates -----------------------------------------------------------------------------

/// How long a node certificate holds. Until renewal is built a node joins again after it.
pub const NODE_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

/// How long a cluster's own CA holds.
pub const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How far the clocks of two nodes may differ when a new certificate is used at once.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);

// --- waits ------------------------------------------------------------------------------------

/// A worker says it lives this often; three missed beats and it is taken for dead.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// QUIC idle timeout of control connections: the time after which a silently dead peer is noticed.
pub const PEER_SILENCE_MAX: Duration = Duration::from_millis(2_500);

/// Dialling and handshaking with one address.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// One control request and its answer.
pub const CONTROL_DEADLINE: Duration = Duration::from_secs(10);

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

// --- engine -----------------------------------------------------------------------------------

/// Tokens of one KV page. 16 keeps the waste per sequence under 16 tokens and a page of one head
/// (64 wide, f16) at 2 KiB.
pub const PAGE_TOKENS: usize = 16;

/// Tokens of one step (decode tokens plus prefill chunks).
pub const STEP_TOKENS_MAX: usize = 512;

/// Sequences of one step.
pub const STEP_SEQUENCES_MAX: usize = 128;

/// Sequences waiting at one driver; one more is answered "overloaded".
pub const WAITING_SEQUENCES_MAX: usize = 1_024;

/// Prefill tokens of a step while other sequences decode: on a slow core 128 rows take about
/// 0.2 s, and that is the longest gap a running stream sees because someone else's prompt came.
pub const PREFILL_BESIDE_DECODE_TOKENS_MAX: usize = 128;

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

/// How long a sequence stays paused for a client that does not read before it is cancelled: it
/// holds KV pages that others wait for.
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

// --- links between ranks ------------------------------------------------------------------------

/// How long a rank's thread polls for its peer before it gives the core away. Covers the imbalance
/// of two ranks' shares of a layer, so that decoding never parks.
pub const LINK_SPIN: Duration = Duration::from_micros(1_000);

/// The same where compute threads outnumber cores: only what a running peer needs to answer.
pub const LINK_SPIN_CROWDED: Duration = Duration::from_micros(3);

/// How long it then polls with `sched_yield`, before it parks (60-100 us to wake).
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
/// Files of one sharded safetensors model (the largest public ones have under 200).
pub const SAFETENSORS_SHARDS_MAX: usize = 1_024;
/// Bytes of a model folder's JSON files (tokenizer.json of a 256k vocabulary is 34 MB).
pub const MODEL_JSON_BYTES_MAX: u64 = 128 << 20;
/// `general.alignment` of a GGUF file; 32 is usual, a page of 64 KiB the largest use.
pub const GGUF_ALIGNMENT_MAX: u64 = 1 << 16;

/// A model's own numbers: some ten times the largest public model's, and small enough that no
/// product of two of them overflows u64.
pub const MODEL_LAYERS_MAX: u32 = 2_048;
pub const MODEL_WIDTH_MAX: u32 = 1 << 20;
pub const MODEL_HEADS_MAX: u32 = 4_096;
pub const MODEL_VOCAB_MAX: u32 = 1 << 22;
pub const MODEL_CONTEXT_MAX: u32 = 1 << 27;
