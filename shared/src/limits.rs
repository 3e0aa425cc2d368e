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

/// Ranks of one stage, and stages of one replica.
pub const TENSOR_PARALLEL_MAX: usize = 64;
pub const PIPELINE_PARALLEL_MAX: usize = 64;

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

// --- chat templates ---------------------------------------------------------------------------

/// Instructions one rendering may take (minijinja's fuel). Real templates take some 30 a message.
pub const CHAT_TEMPLATE_FUEL: u64 = 20_000_000;
/// Bytes of a rendered prompt: all messages of the largest body, and the template's own words.
pub const CHAT_TEMPLATE_OUTPUT_BYTES_MAX: usize = 4 * HTTP_BODY_BYTES_MAX;
