// Why TLS failed: one small number, one stable name and one plain sentence each, for logs, metrics
// and upstream failure reasons. The numbers reach counters and flight records: append only.
// Spec: RFC 8446 §6 (alerts), RFC 5280 §6 (certificate paths); numbers of openssl/sslerr.h and
// x509_vfy.h.

import { ERR_LIB_SSL, type OpenSslErrors } from '../ffi/openssl.ts';

/** What went wrong with a TLS session. */
export const TlsFailure = {
  NONE: 0,
  /** The TCP connection ended during the handshake. */
  PEER_CLOSED: 1,
  /** The socket failed; the errno says how. */
  SOCKET: 2,
  /** The handshake took too long. Never found here: whoever owns the timer says so. */
  TIMEOUT: 3,
  /** What came first is no TLS record. */
  NOT_TLS: 4,
  /** The peer speaks plain HTTP to a TLS port. */
  PLAIN_HTTP: 5,
  PROTOCOL_VERSION: 6,
  NO_SHARED_CIPHER: 7,
  ALPN_MISMATCH: 8,
  /** The client sent no certificate, and had to. */
  CLIENT_CERTIFICATE_REQUIRED: 9,
  CERTIFICATE_EXPIRED: 10,
  CERTIFICATE_NOT_YET_VALID: 11,
  /** The certificate is good, but for another name. */
  WRONG_HOST: 12,
  /** No trusted authority signed the certificate. */
  UNKNOWN_CA: 13,
  SELF_SIGNED: 14,
  CERTIFICATE_REVOKED: 15,
  /** The certificate is not meant for this: client instead of server, or no authority. */
  CERTIFICATE_PURPOSE: 16,
  /** Any other fault of a certificate. */
  CERTIFICATE_INVALID: 17,
  BAD_SIGNATURE: 18,
  /** The peer gave up and said why: `alert` has its number. */
  PEER_ALERT: 19,
  /** The TCP connection ended without close_notify: what came may not be all. */
  TRUNCATED: 20,
  /** The peer broke the protocol. */
  PROTOCOL_ERROR: 21,
  /** The upstream is to be verified, but there is no name to verify. */
  NO_NAME: 22,
  /** OpenSSL could not do its work (no memory, an unusable option). */
  INTERNAL: 23,
  /** The listener has no certificate for the name that the client asks for. */
  UNRECOGNIZED_NAME: 24,
} as const;

/** A TLS failure number. */
export type TlsFailure = (typeof TlsFailure)[keyof typeof TlsFailure];

const sentences: Record<TlsFailure, [name: string, sentence: string]> = {
  [TlsFailure.NONE]: ['none', 'no failure'],
  [TlsFailure.PEER_CLOSED]: ['peer_closed', 'the peer closed the connection during the TLS handshake'],
  [TlsFailure.SOCKET]: ['socket', 'the connection failed'],
  [TlsFailure.TIMEOUT]: ['timeout', 'the TLS handshake took too long'],
  [TlsFailure.NOT_TLS]: ['not_tls', 'the peer does not speak TLS'],
  [TlsFailure.PLAIN_HTTP]: ['plain_http', 'the peer speaks plain HTTP to a TLS port'],
  [TlsFailure.PROTOCOL_VERSION]: ['protocol_version', 'no TLS version that both sides allow'],
  [TlsFailure.NO_SHARED_CIPHER]: ['no_shared_cipher', 'no cipher suite, key exchange group or signature in common'],
  [TlsFailure.ALPN_MISMATCH]: ['alpn_mismatch', 'no application protocol (ALPN) in common'],
  [TlsFailure.CLIENT_CERTIFICATE_REQUIRED]: ['client_certificate_required', 'the client sent no certificate'],
  [TlsFailure.CERTIFICATE_EXPIRED]: ['certificate_expired', "the peer's certificate has expired"],
  [TlsFailure.CERTIFICATE_NOT_YET_VALID]: ['certificate_not_yet_valid', "the peer's certificate is not yet valid"],
  [TlsFailure.WRONG_HOST]: ['wrong_host', "the peer's certificate is for another name"],
  [TlsFailure.UNKNOWN_CA]: ['unknown_ca', "no trusted authority signed the peer's certificate"],
  [TlsFailure.SELF_SIGNED]: ['self_signed', "the peer's certificate is self-signed and not trusted"],
  [TlsFailure.CERTIFICATE_REVOKED]: ['certificate_revoked', "the peer's certificate has been revoked"],
  [TlsFailure.CERTIFICATE_PURPOSE]: ['certificate_purpose', "the peer's certificate is not meant for this use"],
  [TlsFailure.CERTIFICATE_INVALID]: ['certificate_invalid', "the peer's certificate is not valid"],
  [TlsFailure.BAD_SIGNATURE]: ['bad_signature', 'a signature is wrong'],
  [TlsFailure.PEER_ALERT]: ['peer_alert', 'the peer gave up'],
  [TlsFailure.TRUNCATED]: ['truncated', 'the connection ended without close_notify'],
  [TlsFailure.PROTOCOL_ERROR]: ['protocol_error', 'the peer broke the TLS protocol'],
  [TlsFailure.NO_NAME]: ['no_name', 'there is no name to verify the certificate against'],
  [TlsFailure.INTERNAL]: ['internal', 'OpenSSL failed'],
  [TlsFailure.UNRECOGNIZED_NAME]: [
    'unrecognized_name',
    'there is no certificate for the name that the client asks for',
  ],
};

/** All failures, in the order of their numbers, for metrics. */
export const tlsFailures = Object.values(TlsFailure);

/** Stable name of a failure, such as `certificate_expired`. */
export function tlsFailureName(failure: TlsFailure): string {
  return sentences[failure][0];
}

/** One plain phrase for a failure. */
export function tlsFailureSentence(failure: TlsFailure): string {
  return sentences[failure][1];
}

/** Names of alerts (RFC 8446 §6, with the older ones that peers still send). */
const alertNames: Record<number, string> = {
  0: 'close_notify',
  10: 'unexpected_message',
  20: 'bad_record_mac',
  21: 'decryption_failed',
  22: 'record_overflow',
  30: 'decompression_failure',
  40: 'handshake_failure',
  41: 'no_certificate',
  42: 'bad_certificate',
  43: 'unsupported_certificate',
  44: 'certificate_revoked',
  45: 'certificate_expired',
  46: 'certificate_unknown',
  47: 'illegal_parameter',
  48: 'unknown_ca',
  49: 'access_denied',
  50: 'decode_error',
  51: 'decrypt_error',
  60: 'export_restriction',
  70: 'protocol_version',
  71: 'insufficient_security',
  80: 'internal_error',
  86: 'inappropriate_fallback',
  90: 'user_canceled',
  100: 'no_renegotiation',
  109: 'missing_extension',
  110: 'unsupported_extension',
  111: 'certificate_unobtainable',
  112: 'unrecognized_name',
  113: 'bad_certificate_status_response',
  114: 'bad_certificate_hash_value',
  115: 'unknown_psk_identity',
  116: 'certificate_required',
  120: 'no_application_protocol',
};

/** Name of an alert, such as `unknown_ca`. */
export function alertName(alert: number): string {
  return alertNames[alert] ?? `alert ${alert}`;
}

const ALERT_PROTOCOL_VERSION = 70;

/** Reasons of libssl that are received alerts: 1000 plus the alert's number. */
const ALERT_REASONS = 1000;

/** Reason of libssl when chain or name of a certificate did not hold; the verify result says how. */
const CERTIFICATE_VERIFY_FAILED = 134;

const byReason = new Map<number, TlsFailure>([
  [101, TlsFailure.NO_SHARED_CIPHER], // no suitable key share
  [118, TlsFailure.NO_SHARED_CIPHER], // no suitable signature algorithm
  [123, TlsFailure.BAD_SIGNATURE],
  [155, TlsFailure.PLAIN_HTTP], // a CONNECT
  [156, TlsFailure.PLAIN_HTTP],
  [181, TlsFailure.NO_SHARED_CIPHER], // no ciphers available
  [191, TlsFailure.PROTOCOL_VERSION], // no protocols available
  [193, TlsFailure.NO_SHARED_CIPHER],
  [199, TlsFailure.CLIENT_CERTIFICATE_REQUIRED],
  [235, TlsFailure.ALPN_MISMATCH],
  [252, TlsFailure.NOT_TLS], // unknown protocol
  [258, TlsFailure.PROTOCOL_VERSION], // unsupported protocol
  [259, TlsFailure.PROTOCOL_VERSION], // unsupported SSL version
  [266, TlsFailure.PROTOCOL_VERSION], // wrong SSL version
  [267, TlsFailure.NOT_TLS], // wrong version number: of the very first record
  [294, TlsFailure.TRUNCATED], // unexpected EOF while reading
  [376, TlsFailure.NO_SHARED_CIPHER], // no shared signature algorithms
  [396, TlsFailure.PROTOCOL_VERSION], // version too low
  [410, TlsFailure.NO_SHARED_CIPHER], // no shared groups
]);

const byVerifyResult = new Map<number, TlsFailure>([
  [2, TlsFailure.UNKNOWN_CA], // unable to get issuer certificate
  [7, TlsFailure.BAD_SIGNATURE],
  [9, TlsFailure.CERTIFICATE_NOT_YET_VALID],
  [10, TlsFailure.CERTIFICATE_EXPIRED],
  [18, TlsFailure.SELF_SIGNED],
  [19, TlsFailure.UNKNOWN_CA], // self-signed certificate in chain: a whole chain under a foreign root
  [20, TlsFailure.UNKNOWN_CA], // unable to get local issuer certificate
  [21, TlsFailure.UNKNOWN_CA], // unable to verify the first certificate
  [23, TlsFailure.CERTIFICATE_REVOKED],
  [26, TlsFailure.CERTIFICATE_PURPOSE],
  [27, TlsFailure.UNKNOWN_CA], // not trusted
  [62, TlsFailure.WRONG_HOST],
  [63, TlsFailure.WRONG_HOST],
  [64, TlsFailure.WRONG_HOST],
  [79, TlsFailure.CERTIFICATE_PURPOSE], // invalid CA certificate
]);

/** One failure with what is to be logged about it. */
export interface TlsFailureDetail {
  failure: TlsFailure;
  /** Number of the alert that the peer sent; -1 if it sent none. */
  alert: number;
  /** For the log: the plain sentence, and OpenSSL's own words where they say more. */
  text: string;
}

/** A failure that has no more to say than its sentence and, at most, `cause`. */
export function failureDetail(failure: TlsFailure, cause = ''): TlsFailureDetail {
  const sentence = tlsFailureSentence(failure);
  return { failure, alert: -1, text: cause === '' ? sentence : `${sentence}: ${cause}` };
}

/**
 * Names the failure behind errors of OpenSSL. `verifyResult` and `verifyText` are those of the
 * session (SSL_get_verify_result), and count only if the errors are about verification.
 */
export function classifyErrors(errors: OpenSslErrors, verifyResult: number, verifyText: string): TlsFailureDetail {
  const { library, reason, text } = errors;
  if (library !== ERR_LIB_SSL) {
    return failureDetail(library === 0 ? TlsFailure.INTERNAL : TlsFailure.PROTOCOL_ERROR, text);
  }
  if (reason >= ALERT_REASONS && reason < ALERT_REASONS + 256) {
    const alert = reason - ALERT_REASONS;
    const failure = alert === ALERT_PROTOCOL_VERSION ? TlsFailure.PROTOCOL_VERSION : TlsFailure.PEER_ALERT;
    return { failure, alert, text: `the peer sent alert ${alertName(alert)} (${alert})` };
  }
  if (reason === CERTIFICATE_VERIFY_FAILED) {
    return failureDetail(byVerifyResult.get(verifyResult) ?? TlsFailure.CERTIFICATE_INVALID, verifyText);
  }
  return failureDetail(byReason.get(reason) ?? TlsFailure.PROTOCOL_ERROR, text);
}
