// Checks of TLS, protocols and HTTP/2 settings: what clashes, and what is missing.
//
// Control thread. Like semantics.ts it takes nothing for granted about shapes and skips what is wrong
// already. What the files hold is checked by gateway/certificates.
// Spec: RFC 9113 §3.3 (h2c has no TLS), RFC 6066 §3 (SNI names no addresses), RFC 8555 §8.3 and RFC 8737
// (neither challenge proves a wildcard).

import { isIP } from 'node:net';
import { describeValue } from './errors.ts';
import { canonicalHostname, hostnameProblem, parseAddress } from './names.ts';
import { configSchema } from './schema.ts';
import { nodeOf } from './schema-builder.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse, unique } from './semantics-walk.ts';
import { commonHost } from './tls-normalise.ts';
import { parseSizeBytes } from './units.ts';
import type { Path } from './yaml.ts';

/** Keys of `listeners[].tls` that mean nothing where TLS is passed through. */
const terminateKeys = [
  'certificates',
  'minVersion',
  'maxVersion',
  'ciphers',
  'cipherSuites',
  'clientValidation',
  'sessionTickets',
  'acme',
];

/** Reports all violations. */
export function checkTls(root: Mapping, report: Report): void {
  for (const [listener, path] of mappings(root.listeners, ['listeners'])) {
    checkProtocols(listener, path, report);
    checkRedirect(listener, path, report);
    if (isMapping(listener.tls)) checkListenerTls(root, listener.tls, [...path, 'tls'], report);
  }
  checkAcme(root, report);
  for (const [backend, path] of mappings(root.backends, ['backends'])) checkBackend(backend, path, report);
  checkWindows(root, report);
}

// -- listeners -------------------------------------------------------------------

function checkProtocols(listener: Mapping, path: Path, report: Report): void {
  const { tls } = listener;
  const at: Path = [...path, 'protocols'];
  const passthrough = isMapping(tls) && tls.mode === 'Passthrough';
  const seen = new Map<string, Path>();
  const written = [...items(listener.protocols, at)];
  for (const [protocol, protocolPath] of written) {
    unique(seen, protocol, protocolPath, 'the protocol', 'each protocol once', report);
    const value = describeValue(protocol);
    if (protocol === 'h2' && tls === undefined) {
      refuse(report, protocolPath, `${value} needs tls`, 'h2c for HTTP/2 without TLS', 'h2c');
    } else if (protocol === 'h2c' && tls !== undefined && !passthrough) {
      refuse(report, protocolPath, `${value} is HTTP/2 without TLS, but the listener has tls`, 'h2', 'h2');
    } else if (protocol !== 'tcp' && passthrough && typeof protocol === 'string') {
      const problem = `${value} cannot be spoken where tls.mode is Passthrough`;
      refuse(report, protocolPath, problem, 'tcp, or tls.mode: Terminate');
    } else if (protocol === 'tcp' && written.length > 1) {
      refuse(report, protocolPath, `${value} stands beside other protocols`, '[tcp] alone');
    }
  }
}

function checkRedirect(listener: Mapping, path: Path, report: Report): void {
  const { redirectToHttps } = listener;
  const isTcp = Array.isArray(listener.protocols) && listener.protocols.includes('tcp');
  if (redirectToHttps === true || isMapping(redirectToHttps)) {
    const at = [...path, 'redirectToHttps'];
    if (listener.tls !== undefined) {
      refuse(report, at, 'the listener has tls itself', 'this key at the listener without TLS', undefined, 'key');
    } else if (isTcp) {
      refuse(report, at, 'the listener does not speak HTTP', 'protocols: [http/1.1, h2c]', undefined, 'key');
    }
  }
  if (listener.allowConnect === true && (isTcp || (isMapping(listener.tls) && listener.tls.mode === 'Passthrough'))) {
    const at = [...path, 'allowConnect'];
    refuse(report, at, 'the listener does not speak HTTP', 'a listener with protocols http/1.1', undefined, 'key');
  }
}

function checkListenerTls(root: Mapping, tls: Mapping, path: Path, report: Report): void {
  if (tls.mode === 'Passthrough') {
    for (const key of terminateKeys) {
      if (tls[key] === undefined || (Array.isArray(tls[key]) && tls[key].length === 0)) continue;
      const problem = 'has no meaning with mode Passthrough, which leaves TLS to the backend';
      refuse(report, [...path, key], problem, 'mode: Terminate, or no such key', undefined, 'key');
    }
    return;
  }
  const none = tls.certificates === undefined || (Array.isArray(tls.certificates) && tls.certificates.length === 0);
  if (none && tls.acme === undefined) {
    const expected = 'certificates: [{certificate: site.crt, key: site.key}], acme, or mode: Passthrough';
    refuse(report, path, 'has no certificates', expected, undefined, 'key');
  }
  checkVersions(tls, path, report);
  if (tls.ciphers !== undefined && String(tls.minVersion) === '1.3') {
    const problem = 'is never used, since minVersion is 1.3';
    refuse(report, [...path, 'ciphers'], problem, 'cipherSuites for TLS 1.3', undefined, 'key');
  }
  if (tls.cipherSuites !== undefined && String(tls.maxVersion) === '1.2') {
    const problem = 'is never used, since maxVersion is 1.2';
    refuse(report, [...path, 'cipherSuites'], problem, 'ciphers for TLS 1.2', undefined, 'key');
  }
  for (const [certificate, at] of mappings(tls.certificates, [...path, 'certificates'])) {
    checkNames(certificate.hostnames, [...at, 'hostnames'], report);
  }
  if (isMapping(tls.acme)) checkListenerAcme(root, tls.acme, [...path, 'acme'], report);
}

function checkVersions(tls: Mapping, path: Path, report: Report): void {
  if (String(tls.minVersion) !== '1.3' || String(tls.maxVersion) !== '1.2') return;
  refuse(report, [...path, 'minVersion'], '1.3 is above maxVersion, 1.2', 'minVersion at most maxVersion');
}

/** Names in SNI: each once, and no addresses. */
function checkNames(list: unknown, path: Path, report: Report): void {
  const seen = new Map<string, Path>();
  for (const [name, at] of items(list, path)) {
    if (typeof name !== 'string' || hostnameProblem(name) !== undefined) continue;
    if (isAddress(name)) {
      refuse(report, at, `${describeValue(name)} is an IP address, which clients never name in SNI`, 'a DNS name');
    } else {
      unique(seen, canonicalHostname(name), at, 'the hostname', 'each hostname once', report);
    }
  }
}

/** Whether a hostname is an IP address, with or without brackets. */
export function isAddress(hostname: string): boolean {
  return isIP(hostname.replace(/^\[(.*)\]$/, '$1')) > 0;
}

// -- ACME ------------------------------------------------------------------------

function checkListenerAcme(root: Mapping, acme: Mapping, path: Path, report: Report): void {
  if (root.acme === undefined) {
    const expected = 'acme: {storage: /var/lib/portcullis/acme, termsOfServiceAgreed: true} at the top level';
    refuse(report, path, 'there is no account', expected, undefined, 'key');
  }
  checkNames(acme.hostnames, [...path, 'hostnames'], report);
  for (const [name, at] of items(acme.hostnames, [...path, 'hostnames'])) {
    if (typeof name !== 'string' || !name.startsWith('*.') || hostnameProblem(name) !== undefined) continue;
    const problem = `${describeValue(name)} is a wildcard, which neither challenge can prove`;
    refuse(report, at, problem, 'exact names, or a certificate from elsewhere');
  }
  if (acme.challenge !== undefined && acme.challenge !== 'http-01') return;
  const plain = [...mappings(root.listeners, ['listeners'])].some(([{ tls, protocols }]) => {
    const speaksHttp = !Array.isArray(protocols) || protocols.includes('http/1.1');
    return tls === undefined && speaksHttp;
  });
  if (plain) return;
  const at = acme.challenge === undefined ? path : [...path, 'challenge'];
  const problem = 'http-01 is answered on a listener without TLS, and there is none with protocol http/1.1';
  refuse(report, at, problem, 'such a listener, which clients reach on port 80, or challenge: tls-alpn-01');
}

function checkAcme(root: Mapping, report: Report): void {
  if (!isMapping(root.acme) || root.acme.termsOfServiceAgreed !== false) return;
  const problem = 'the authority gives certificates only to those who agree to its terms of service';
  refuse(report, ['acme', 'termsOfServiceAgreed'], problem, 'true, or no acme');
}

// -- backends --------------------------------------------------------------------

function checkBackend(backend: Mapping, path: Path, report: Report): void {
  const { protocol, tls } = backend;
  const at = [...path, 'protocol'];
  if (protocol === 'h2' && tls === undefined) {
    refuse(report, at, '"h2" needs tls', 'h2c for HTTP/2 without TLS', 'h2c');
  } else if (protocol === 'h2c' && tls !== undefined && backend.tunnel === undefined) {
    refuse(report, at, '"h2c" is HTTP/2 without TLS, but the backend has tls', 'h2', 'h2');
  }
  const isHttp2 = protocol === 'h2' || protocol === 'h2c';
  const inHttp2 = isHttp2 || backend.tunnel !== undefined;
  if (backend.http2 !== undefined && !inHttp2) {
    const problem = 'has no meaning with protocol http/1.1';
    refuse(report, [...path, 'http2'], problem, 'protocol: h2 or h2c', undefined, 'key');
  }
  if (backend.proxyProtocol !== undefined && isHttp2) {
    const problem = `names one client, but a connection with ${protocol} carries the requests of many`;
    refuse(report, [...path, 'proxyProtocol'], problem, 'protocol: http/1.1', undefined, 'key');
  }
  if (isMapping(tls)) checkBackendTls(backend, tls, [...path, 'tls'], report);
}

function checkBackendTls(backend: Mapping, tls: Mapping, path: Path, report: Report): void {
  checkVersions(tls, path, report);
  for (const [one, other] of [
    ['certificate', 'key'],
    ['key', 'certificate'],
  ] as const) {
    if (tls[one] === undefined || tls[other] !== undefined) continue;
    refuse(report, [...path, one], `stands without ${other}`, `both certificate and key`, undefined, 'key');
  }
  if (tls.insecureSkipVerify === true) {
    for (const key of ['caCertificates', 'subjectAltNames']) {
      if (tls[key] === undefined) continue;
      const problem = 'is never used, since insecureSkipVerify takes any certificate';
      refuse(report, [...path, key], problem, 'one of the two', undefined, 'key');
    }
    return;
  }
  if (tls.serverName !== undefined || tls.subjectAltNames !== undefined) return;
  const endpoints = [...items(backend.endpoints, [])].map(([endpoint]) => {
    const address = isMapping(endpoint) ? endpoint.address : endpoint;
    return typeof address === 'string' ? parseAddress(address) : 'is missing';
  });
  const valid = endpoints.filter((endpoint) => typeof endpoint !== 'string');
  if (valid.length === 0 || valid.length < endpoints.length || commonHost(valid) !== undefined) return;
  const problem = 'key "serverName" is missing, and the endpoints have no DNS name in common to verify';
  refuse(report, path, problem, 'serverName: the name in the certificate of the backend', undefined, 'key');
}

// -- HTTP/2 ----------------------------------------------------------------------

function checkWindows(root: Mapping, report: Report): void {
  const http2 = isMapping(root.http2) ? root.http2 : {};
  const defaults = nodeOf(configSchema).properties!.http2!.properties!;
  const stream = http2.streamWindow ?? defaults.streamWindow!.default;
  const connection = http2.connectionWindow ?? defaults.connectionWindow!.default;
  const streamBytes = parseSizeBytes(String(stream));
  const connectionBytes = parseSizeBytes(String(connection));
  if (streamBytes === undefined || connectionBytes === undefined || streamBytes <= connectionBytes) return;
  const at: Path = ['http2', http2.streamWindow === undefined ? 'connectionWindow' : 'streamWindow'];
  report({
    path: at,
    part: 'value',
    problem: `http2.streamWindow (${stream}) is larger than http2.connectionWindow (${connection})`,
    expected: 'a connection window that has room for the window of a stream',
  });
}
