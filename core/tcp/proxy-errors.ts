// What can be wrong with a PROXY header: numbers for the parser, one sentence each for the log.
//
// Immutable after load. Bad input costs no exception and no string.
// Spec: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt (§2.1 version 1, §2.2 version 2).

/** What can be wrong with a PROXY header. Appended to only: the numbers reach logs and counters. */
export const ProxyError = {
  NOT_PROXY: 1,
  LINE_TOO_LONG: 2,
  LINE_END_INVALID: 3,
  PROTOCOL_UNKNOWN: 4,
  ADDRESS_INVALID: 5,
  PORT_INVALID: 6,
  VERSION_UNKNOWN: 7,
  COMMAND_UNKNOWN: 8,
  FAMILY_UNKNOWN: 9,
  TOO_LARGE: 10,
  ADDRESSES_TRUNCATED: 11,
  TLV_MALFORMED: 12,
  TLV_DUPLICATE: 13,
  CHECKSUM_WRONG: 14,
} as const;

const sentences: Record<keyof typeof ProxyError, string> = {
  NOT_PROXY: 'The connection does not start with a PROXY protocol header.',
  LINE_TOO_LONG: 'The PROXY line does not end within 107 bytes.',
  LINE_END_INVALID: 'The PROXY line does not end in a carriage return and a line feed.',
  PROTOCOL_UNKNOWN: 'The PROXY line names neither TCP4, TCP6 nor UNKNOWN.',
  ADDRESS_INVALID: 'The PROXY line holds a malformed address.',
  PORT_INVALID: 'The PROXY line holds a malformed port.',
  VERSION_UNKNOWN: 'The binary PROXY header has a version other than 2.',
  COMMAND_UNKNOWN: 'The binary PROXY header has a command other than LOCAL and PROXY.',
  FAMILY_UNKNOWN: 'The binary PROXY header has an address family or a transport that is not defined.',
  TOO_LARGE: 'The binary PROXY header is larger than the limit.',
  ADDRESSES_TRUNCATED: 'The binary PROXY header is too short for its addresses.',
  TLV_MALFORMED: 'The binary PROXY header holds a TLV whose length does not fit.',
  TLV_DUPLICATE: 'The binary PROXY header holds a TLV twice.',
  CHECKSUM_WRONG: 'The checksum of the binary PROXY header is wrong.',
};

const byNumber: string[] = [];
for (const name of Object.keys(sentences) as (keyof typeof sentences)[]) byNumber[ProxyError[name]] = sentences[name];

/** One plain sentence for logs. */
export function proxyErrorSentence(error: number): string {
  return byNumber[error] ?? 'Unknown PROXY protocol error.';
}
