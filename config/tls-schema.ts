// TLS in the configuration: certificates of listeners, trust towards backends, the ACME account.
//
// Control thread. One part of the schema (schema.ts), kept together because its words mean the same on
// both sides. What the files hold is checked by gateway/certificates, relations between keys in
// tls-semantics.ts.
// Spec: RFC 8446, RFC 5246, RFC 8555; Gateway API ListenerTLSConfig and BackendTLSPolicy.

import { suggest } from '../core/process/suggest.ts';
import {
  boolean,
  filePath,
  hostname,
  NOTE,
  type Note,
  oneOf,
  serverName,
  subjectAltName,
  text,
  word,
} from './kinds.ts';
import { list, literal, mapping, maybe, union, words } from './schema-builder.ts';

/** Most certificates of a listener, and names of one certificate. */
const CERTIFICATES_MAX = 4096;
const HOSTNAMES_MAX = 1024;

/** A TLS version; YAML reads an unquoted 1.2 as a number, which can mean nothing else. */
function version(fallback: '1.2' | '1.3', description: string) {
  return union([words(['1.2', '1.3'], {}), literal(1.2), literal(1.3)], {
    default: fallback,
    description,
    [NOTE]: {
      type: '`1.2`, `1.3`',
      expected: '1.2 or 1.3',
      names: ['1.2', '1.3'],
      suggest: (value) => /^TLS\s?v?(1\.[23])$/i.exec(value)?.[1],
    } satisfies Note,
  });
}

/** Names that OpenSSL knows; asked for only when a configuration has a list of them. */
let openSslNames: readonly string[] | undefined;

/** Names of TLS 1.3 (`TLS_...`), or those of before. */
function knownCiphers(ofTls13: boolean): string[] {
  openSslNames ??= process
    .getBuiltinModule('node:tls')
    .getCiphers()
    .map((cipher) => cipher.toUpperCase());
  return openSslNames.filter((cipher) => cipher.startsWith('TLS_') === ofTls13);
}

function cipherList(ofTls13: boolean, description: string) {
  const example = ofTls13 ? 'TLS_AES_128_GCM_SHA256' : 'ECDHE-RSA-AES128-GCM-SHA256';
  const version = ofTls13 ? '1.3' : '1.2';
  const problem = (name: string): string | undefined => {
    if (knownCiphers(ofTls13).includes(name)) return undefined;
    return knownCiphers(!ofTls13).includes(name)
      ? `is not of TLS ${version}: it belongs in ${ofTls13 ? 'ciphers' : 'cipherSuites'}`
      : `is no ${ofTls13 ? 'cipher suite' : 'cipher'} of TLS ${version} that OpenSSL knows by this name`;
  };
  const item = text(
    { description: "Name in OpenSSL's notation." },
    'name',
    `a name such as ${example}`,
    problem,
    (name) => (knownCiphers(!ofTls13).includes(name) ? undefined : suggest(name.toUpperCase(), knownCiphers(ofTls13))),
  );
  return list(item, { minItems: 1, maxItems: 64, description });
}

const certificateSchema = mapping(
  {
    certificate: filePath('PEM file with the certificate and its intermediates, in any order.'),
    key: filePath('PEM file with the private key, not encrypted: EC, RSA or Ed25519.'),
    hostnames: maybe(
      list(hostname({ description: 'Exact name, or a wildcard such as `*.example.com`.' }), {
        minItems: 1,
        maxItems: HOSTNAMES_MAX,
        description: 'Names in SNI that get this certificate. Default: the DNS names in the certificate.',
      }),
    ),
  },
  { description: 'One certificate.' },
);

const clientValidationSchema = mapping(
  {
    caCertificates: filePath('PEM file with the authorities that client certificates may come from.'),
    mode: maybe(
      oneOf(['required', 'optional'], {
        default: 'required',
        description: '`optional` also takes clients that send no certificate. A bad one ends the handshake in both.',
      }),
    ),
  },
  { description: 'Clients have to show a certificate. Absent: they are not asked for one.' },
);

const listenerAcmeSchema = mapping(
  {
    hostnames: list(hostname({ description: 'Exact name; neither challenge can prove a wildcard.' }), {
      minItems: 1,
      maxItems: 100,
      description: 'Names for which a certificate is obtained; the first is its main name.',
    }),
    challenge: maybe(
      oneOf(['http-01', 'tls-alpn-01'], {
        default: 'http-01',
        description:
          'How control over the names is proved: `http-01` is answered by every listener without TLS (the authority asks on port 80), `tls-alpn-01` by this listener (port 443).',
      }),
    ),
  },
  { description: 'Certificates by ACME; needs the account in `acme`. Absent: none are obtained.' },
);

/** Schema of `listeners[].tls`. */
export const listenerTlsSchema = mapping(
  {
    mode: maybe(
      oneOf(['Terminate', 'Passthrough'], {
        default: 'Terminate',
        description:
          '`Terminate` ends TLS here. `Passthrough` leaves it to the backend: TLS routes choose by the name in SNI, and the bytes are passed on.',
      }),
    ),
    certificates: maybe(
      list(certificateSchema, {
        default: [],
        maxItems: CERTIFICATES_MAX,
        description:
          'Certificates, chosen by SNI: an exact name before a wildcard. Several with the same names and different types of key are put side by side. The first one is for other names and clients without SNI.',
      }),
    ),
    minVersion: maybe(version('1.2', 'Lowest TLS version that is accepted.')),
    maxVersion: maybe(version('1.3', 'Highest TLS version that is offered.')),
    ciphers: maybe(
      cipherList(
        false,
        'Ciphers of TLS 1.2, in order of preference. Default: ECDHE with AES-GCM or ChaCha20-Poly1305 (RFC 9325 §4.2).',
      ),
    ),
    cipherSuites: maybe(
      cipherList(
        true,
        'Cipher suites of TLS 1.3, in order of preference. Default: all three of RFC 8446, AES-128 first.',
      ),
    ),
    clientValidation: maybe(clientValidationSchema),
    sessionTickets: maybe(
      boolean({
        default: true,
        description:
          'Let clients resume sessions with tickets. Keys change every 12 hours, are shared by all workers, and are kept across reloads.',
      }),
    ),
    acme: maybe(listenerAcmeSchema),
  },
  { description: 'TLS of the listener. Absent: none.' },
);

/** Schema of `backends[].tls`. */
export const backendTlsSchema = mapping(
  {
    serverName: maybe(
      serverName({
        description:
          'Name sent in SNI, and that the certificate must have. Default: the DNS name of the endpoints when all have the same; otherwise it is required.',
      }),
    ),
    caCertificates: maybe(
      filePath("PEM file with the authorities to trust. Default: the system's (`SSL_CERT_FILE` names another file)."),
    ),
    subjectAltNames: maybe(
      list(
        subjectAltName({
          description: 'DNS name, IP address or URI such as `spiffe://cluster.local/ns/shop/sa/cart`.',
        }),
        {
          minItems: 1,
          maxItems: 64,
          description: 'Names of which the certificate must have one, instead of `serverName`. Absent: `serverName`.',
        },
      ),
    ),
    certificate: maybe(
      filePath('PEM file with the certificate that is shown to the backend, with its intermediates. Absent: none.'),
    ),
    key: maybe(filePath('PEM file with the private key of `certificate`. Absent: none.')),
    insecureSkipVerify: maybe(
      boolean({
        default: false,
        description: 'Take any certificate, so that anybody on the way can pose as the backend. For tests only.',
      }),
    ),
    minVersion: maybe(version('1.2', 'Lowest TLS version that is accepted.')),
    maxVersion: maybe(version('1.3', 'Highest TLS version that is offered.')),
  },
  { description: 'TLS towards the endpoints. Absent: none.' },
);

/** Directory of Let's Encrypt. */
const ACME_DIRECTORY_DEFAULT = 'https://acme-v02.api.letsencrypt.org/directory';

/** Schema of `acme`. */
export const acmeSchema = mapping(
  {
    directory: maybe(
      text(
        { default: ACME_DIRECTORY_DEFAULT, description: "Directory URL of the certificate authority: Let's Encrypt." },
        'URL',
        'an https URL',
        httpsProblem,
      ),
    ),
    email: maybe(
      text(
        { description: 'Address that the authority may write to about the account. Absent: none.' },
        'email address',
        'an address such as ops@example.com',
        (value) => (/^[^\s@:,;<>]+@[^\s@:,;<>]+$/.test(value) ? undefined : 'is not an email address'),
        (value) => /^mailto:(.+)$/.exec(value)?.[1],
      ),
    ),
    storage: filePath(
      'Directory for the account and the certificates, made if it is missing. Gateways may share it.',
      true,
    ),
    termsOfServiceAgreed: boolean({
      description: "Must be true: the authority's terms of service have been read and are agreed to.",
    }),
    externalAccount: maybe(
      mapping(
        {
          keyId: word('Key identifier that the authority gave out.'),
          hmacKey: word('MAC key that the authority gave out, in base64url; best from an environment variable.'),
        },
        { description: 'External account binding (RFC 8555 §7.3.4), where the authority asks for it. Absent: none.' },
      ),
    ),
    caCertificates: maybe(
      filePath("PEM file with the authorities to trust when talking to the directory. Default: the system's."),
    ),
  },
  { description: 'Account for automatic certificates (ACME, RFC 8555). Absent: none are obtained.' },
);

function httpsProblem(value: string): string | undefined {
  if (!URL.canParse(value)) return 'is not a URL';
  const url = new URL(value);
  if (url.protocol !== 'https:') return 'is not an https URL';
  return url.username !== '' || url.password !== '' ? 'has a user name or password' : undefined;
}
