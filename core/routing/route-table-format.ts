// Layout of the compiled route table: one SharedArrayBuffer of little-endian 32-bit words and bytes.
//
// Written by config/compile-routes.ts on the control thread, read in place by every packet worker
// (route-table.ts). Immutable once written. Writer and reader both take their numbers from here.
//
//   header | rules | routes | refs | listener sets | listener hosts | hosts | host slots
//          | paths | path slots | candidates | conditions | expressions | bytes
//
// Invariant: every section starts at a whole word; only the last section holds bytes.

/** First word of every table: "PRT1" read as little-endian bytes. */
export const ROUTE_TABLE_MAGIC = 0x31545250;

/** Version of this layout; a reader refuses any other. */
export const ROUTE_TABLE_VERSION = 5;

/** Words of the header. Section positions are in words from the start, except BYTES (in bytes). */
export const Header = {
  MAGIC: 0,
  VERSION: 1,
  RULES: 2,
  RULE_COUNT: 3,
  ROUTES: 4,
  ROUTE_COUNT: 5,
  REFS: 6,
  REF_COUNT: 7,
  LISTENER_SETS: 8,
  /** Words of one listener set. */
  LISTENER_SET_WORDS: 9,
  HOSTS: 10,
  HOST_COUNT: 11,
  HOST_SLOTS: 12,
  /** Number of host slots minus one; the number is a power of two. */
  HOST_SLOT_MASK: 13,
  PATHS: 14,
  PATH_COUNT: 15,
  PATH_SLOTS: 16,
  PATH_SLOT_MASK: 17,
  CANDIDATES: 18,
  CANDIDATE_COUNT: 19,
  BYTES: 20,
  BYTE_COUNT: 21,
  /** Longest host key in bytes; no more of a host is ever read. */
  HOST_BYTES_MAX: 22,
  /** Most dots in a wildcard suffix, its first one included. */
  HOST_DOTS_MAX: 23,
  /** Longest path key in bytes; no more of a path is ever read, except the byte after it. */
  PATH_BYTES_MAX: 24,
  /** Most elements of a path prefix. */
  PREFIX_DEPTH_MAX: 25,
  CONDITIONS: 26,
  /** Compiled regular expressions, see dfa.ts. */
  EXPRESSIONS: 27,
  /** 1 when some condition asks for the client's address. */
  NEEDS_CLIENT: 28,
  /** Index of the host that stands for "any host": without a listener (-1), then by listener. */
  LISTENER_HOSTS: 29,
  WORDS: 30,
} as const;

/** Words of one rule. Times are milliseconds, 0: no limit. */
export const Rule = {
  REQUEST_TIMEOUT_MS: 0,
  BACKEND_REQUEST_TIMEOUT_MS: 1,
  REF_START: 2,
  REF_COUNT: 3,
  WEIGHT_TOTAL: 4,
  ROUTE: 5,
  /** Position of the rule in its route, 1 for the first. */
  NUMBER: 6,
  /** Bit set of RuleFlag. */
  FLAGS: 7,
  /** Index in `Snapshot.rulePolicies`, or -1. */
  POLICY: 8,
  WORDS: 9,
} as const;

/** Filters of a rule that are only on or off. */
export const RuleFlag = {
  /** gRPC-Web requests become gRPC for backends that speak HTTP/2. */
  GRPC_WEB: 1,
} as const;

/** Words of one route: where its name lies in the bytes section. */
export const Route = { NAME_OFFSET: 0, NAME_LENGTH: 1, WORDS: 2 } as const;

/** Words of one backend reference. */
export const Ref = {
  BACKEND: 0,
  WEIGHT: 1,
  /** Index in `Snapshot.refPolicies`, or -1. */
  POLICY: 2,
  WORDS: 3,
} as const;

/**
 * Words of one host. Host 0 is "any host" and has no key, and so is that of a listener which shares no route with
 * others (LISTENER_HOSTS). The key of an exact hostname is its
 * lower-case bytes; the key of `*.example.com` is `.example.com`, which no exact hostname equals.
 */
export const Host = {
  KEY_OFFSET: 0,
  KEY_LENGTH: 1,
  /** 1 when the host has Exact paths. */
  HAS_EXACT: 2,
  /** Bit n: the host has a prefix of n elements; bit 31: of 31 or more. */
  PREFIX_DEPTHS: 3,
  /** Path entry with the host's regular expressions, or -1. */
  EXPRESSIONS: 4,
  WORDS: 5,
} as const;

/** Words of one path entry: what is matched, and which rules compete for it. */
export const Path = {
  KEY_OFFSET: 0,
  KEY_LENGTH: 1,
  HOST: 2,
  KIND: 3,
  CANDIDATE_START: 4,
  CANDIDATE_COUNT: 5,
  WORDS: 6,
} as const;

/**
 * How a path entry matches. The key of a prefix has no slash at its end; "/" is the empty key. An entry
 * of kind EXPRESSION has no key either: it has all candidates of a host whose path is a regular
 * expression, which is the first of their conditions.
 */
export const PathKind = { EXACT: 0, PREFIX: 1, EXPRESSION: 2 } as const;

/** Words of one slot of an open-addressing table: full hash, then entry index plus one (0: free). */
export const Slot = { HASH: 0, ENTRY: 1, WORDS: 2 } as const;

/**
 * Words of one candidate. Candidates of a path are in the order of their precedence, and the first
 * whose conditions all hold wins.
 */
export const Candidate = {
  RULE: 0,
  /** Index of the listener set that the route is bound to, or -1 for all listeners. */
  LISTENER_SET: 1,
  /** Where its conditions begin in the section of conditions, in words. */
  CONDITION_START: 2,
  /** 0: none beyond host and path. */
  CONDITION_COUNT: 3,
  WORDS: 4,
} as const;

/**
 * Words of one condition. Texts are places in the bytes section, expressions are positions in words
 * from the start of the section of expressions.
 */
export const Condition = {
  KIND: 0,
  /** Fields and query parameters: their name. Fields: in lower case. */
  NAME_OFFSET: 1,
  NAME_LENGTH: 2,
  /** Fields: known-header id of the name, or HeaderId.OTHER. */
  NAME_ID: 3,
  /** Offset of a text, position of an expression, or where a list of alternatives begins in the section, in words. */
  VALUE: 4,
  /** Length of the text, or number of alternatives. */
  VALUE_LENGTH: 5,
  WORDS: 6,
} as const;

/** What a condition asks for. Alternatives of a list have the words of a condition too. */
export const ConditionKind = {
  /** The whole path matches an expression. */
  PATH: 0,
  METHOD: 1,
  HEADER: 2,
  HEADER_EXPRESSION: 3,
  QUERY: 4,
  QUERY_EXPRESSION: 5,
  /** POST, with the content type of gRPC. */
  GRPC: 6,
  /** A verified client certificate; VALUE_LENGTH 0, or one of whose names is among the alternatives. */
  CERTIFICATE: 7,
  /** The SHA-256 of a verified client certificate is among the alternatives, each a text. */
  CERTIFICATE_HASH: 8,
  /** The client's address is in one of the networks, see Network. */
  SOURCE: 9,
  /** Alternatives of CERTIFICATE. */
  NAME: 10,
  NAME_PREFIX: 11,
  NAME_EXPRESSION: 12,
} as const;

/** Words of one network, the alternatives of SOURCE. Addresses as in PeerAddress. */
export const Network = {
  /** Length of the prefix: up to 32 for IPv4, up to 128 for IPv6. */
  BITS: 0,
  /** 4 or 6. */
  VERSION: 1,
  ADDRESS: 2,
  WORDS: 6,
} as const;
