// What a peer can do wrong in HTTP/2: error codes, what each error ends, and one plain sentence.
//
// An error is one positive number, so that bad input costs no exception and no string; 0 is none:
//
//   bits 0-7    the ErrorCode that RST_STREAM or GOAWAY carries
//   bit 8       SCOPE_STREAM: only the stream ends (RFC 9113 §5.4.2), otherwise the connection (§5.4.1)
//   bits 16-    the rule that was broken, for logs and for the debug data of GOAWAY
//
// The rules' numbers reach logs and counters: append only. Immutable after load.
// Spec: RFC 9113 §5.4 (errors), §7 (codes).

/** Error codes of RST_STREAM and GOAWAY (RFC 9113 §7). */
export const ErrorCode = {
  NO_ERROR: 0x0,
  PROTOCOL_ERROR: 0x1,
  INTERNAL_ERROR: 0x2,
  FLOW_CONTROL_ERROR: 0x3,
  SETTINGS_TIMEOUT: 0x4,
  STREAM_CLOSED: 0x5,
  FRAME_SIZE_ERROR: 0x6,
  REFUSED_STREAM: 0x7,
  CANCEL: 0x8,
  COMPRESSION_ERROR: 0x9,
  CONNECT_ERROR: 0xa,
  ENHANCE_YOUR_CALM: 0xb,
  INADEQUATE_SECURITY: 0xc,
  HTTP_1_1_REQUIRED: 0xd,
} as const;

/** An HTTP/2 error code. */
export type ErrorCode = (typeof ErrorCode)[keyof typeof ErrorCode];

/** Name of an HTTP/2 error code, as in `ErrorCode`. */
export type ErrorCodeName = keyof typeof ErrorCode;

/** The largest error code that RFC 9113 defines. */
export const ERROR_CODE_MAX = 0xd;

/** Set in errors that end one stream; clear in errors that end the connection. */
export const SCOPE_STREAM = 0x100;

/** The error code within an error. */
export const ERROR_CODE_MASK = 0xff;

/** The rule within an error: `error >> RULE_SHIFT`. */
export const RULE_SHIFT = 16;

const codeNames: ErrorCodeName[] = [];
for (const name of Object.keys(ErrorCode) as ErrorCodeName[]) codeNames[ErrorCode[name]] = name;

/** Rule by name: its number, its error code, and the sentence for logs. */
const rules = {
  FRAME_TOO_LARGE: [1, ErrorCode.FRAME_SIZE_ERROR, 'A frame is larger than the announced SETTINGS_MAX_FRAME_SIZE.'],
  FRAME_TOO_SHORT: [2, ErrorCode.FRAME_SIZE_ERROR, 'A frame is too short for the fields that its flags announce.'],
  STREAM_ID_ZERO: [3, ErrorCode.PROTOCOL_ERROR, 'A frame that belongs to a stream was sent on stream 0.'],
  STREAM_ID_NOT_ZERO: [4, ErrorCode.PROTOCOL_ERROR, 'A frame that belongs to the connection was sent on a stream.'],
  PADDING_TOO_LONG: [5, ErrorCode.PROTOCOL_ERROR, 'The padding is longer than the frame that holds it.'],
  PRIORITY_LENGTH: [6, ErrorCode.FRAME_SIZE_ERROR, 'A PRIORITY frame is not 5 bytes long.'],
  PRIORITY_ON_ITSELF: [7, ErrorCode.PROTOCOL_ERROR, 'A stream was made to depend on itself.'],
  RST_STREAM_LENGTH: [8, ErrorCode.FRAME_SIZE_ERROR, 'A RST_STREAM frame is not 4 bytes long.'],
  SETTINGS_LENGTH: [9, ErrorCode.FRAME_SIZE_ERROR, 'The length of a SETTINGS frame is not a multiple of 6.'],
  SETTINGS_ACK_LENGTH: [10, ErrorCode.FRAME_SIZE_ERROR, 'A SETTINGS acknowledgement is not empty.'],
  SETTINGS_TOO_MANY: [11, ErrorCode.ENHANCE_YOUR_CALM, 'A SETTINGS frame holds more settings than the limit.'],
  ENABLE_PUSH_INVALID: [12, ErrorCode.PROTOCOL_ERROR, 'SETTINGS_ENABLE_PUSH has a value that the peer may not send.'],
  INITIAL_WINDOW_TOO_LARGE: [13, ErrorCode.FLOW_CONTROL_ERROR, 'SETTINGS_INITIAL_WINDOW_SIZE is above 2147483647.'],
  MAX_FRAME_SIZE_INVALID: [14, ErrorCode.PROTOCOL_ERROR, 'SETTINGS_MAX_FRAME_SIZE is not from 16384 to 16777215.'],
  ENABLE_CONNECT_INVALID: [
    15,
    ErrorCode.PROTOCOL_ERROR,
    'SETTINGS_ENABLE_CONNECT_PROTOCOL is neither 0 nor 1, or went back to 0.',
  ],
  NO_PRIORITIES_INVALID: [16, ErrorCode.PROTOCOL_ERROR, 'SETTINGS_NO_RFC7540_PRIORITIES is neither 0 nor 1.'],
  PUSH_PROMISE_RECEIVED: [17, ErrorCode.PROTOCOL_ERROR, 'A PUSH_PROMISE frame was sent, and push is not enabled.'],
  PING_LENGTH: [18, ErrorCode.FRAME_SIZE_ERROR, 'A PING frame is not 8 bytes long.'],
  GOAWAY_LENGTH: [19, ErrorCode.FRAME_SIZE_ERROR, 'A GOAWAY frame is shorter than 8 bytes.'],
  WINDOW_UPDATE_LENGTH: [20, ErrorCode.FRAME_SIZE_ERROR, 'A WINDOW_UPDATE frame is not 4 bytes long.'],
  WINDOW_UPDATE_ZERO: [21, ErrorCode.PROTOCOL_ERROR, 'A WINDOW_UPDATE frame has an increment of 0.'],
} as const satisfies Record<string, readonly [number, ErrorCode, string]>;

/** Name of a rule, as in `FrameError`. */
type FrameErrorName = keyof typeof rules;

/**
 * Errors with connection scope, by the rule that was broken; `| SCOPE_STREAM` where only the stream ends.
 * `error & ERROR_CODE_MASK` is the code to send.
 */
export const FrameError = Object.fromEntries(
  Object.entries(rules).map(([name, [rule, code]]) => [name, (rule << RULE_SHIFT) | code]),
) as Readonly<Record<FrameErrorName, number>>;

const ruleNames: FrameErrorName[] = [];
for (const name of Object.keys(rules) as FrameErrorName[]) ruleNames[rules[name][0]] = name;

/** The code that RST_STREAM or GOAWAY carries for an error; 0 (NO_ERROR) for 0. */
export function errorCodeOf(error: number): number {
  return error & ERROR_CODE_MASK;
}

/** Name of an error code, such as `CANCEL`; `UNKNOWN` for a code that RFC 9113 does not define. */
export function errorCodeName(code: number): ErrorCodeName | 'UNKNOWN' {
  return codeNames[code] ?? 'UNKNOWN';
}

/** One plain ASCII sentence for logs and for the debug data of GOAWAY. */
export function frameErrorSentence(error: number): string {
  const name = ruleNames[error >> RULE_SHIFT];
  return name === undefined ? `HTTP/2 error ${errorCodeName(error & ERROR_CODE_MASK)}.` : rules[name][2];
}
