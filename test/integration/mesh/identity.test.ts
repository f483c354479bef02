// Certificates over the network: the gRPC service of the mesh CA with real TLS, join tokens and node proxies'
// clients, and the certificates in real handshakes.

import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import tls from 'node:tls';
import grpc from '@grpc/grpc-js';
import { CertificateAttestor } from '../../../mesh-agent/identity/attestation.ts';
import type { MeshAuthority } from '../../../mesh-agent/identity/authority.ts';
import { CertificateClient } from '../../../mesh-agent/identity/certificate-client.ts';
import {
  addCertificateService,
  type CertificateServiceCounts,
} from '../../../mesh-agent/identity/certificate-service.ts';
import { createSigningRequest } from '../../../mesh-agent/identity/csr.ts';
import { IdentityError } from '../../../mesh-agent/identity/errors.ts';
import { JoinTokens } from '../../../mesh-agent/identity/join-tokens.ts';
import { generateKey } from '../../../mesh-agent/identity/keys.ts';
import { splitCertificates } from '../../../mesh-agent/identity/pem.ts';
import { ServerTls } from '../../../mesh-agent/identity/server-tls.ts';
import { bundleToJson, bundleToPem } from '../../../mesh-agent/identity/trust-bundle.ts';
import { TrustStore } from '../../../mesh-agent/identity/trust-store.ts';
import { type WorkloadCertificate, WorkloadCertificates } from '../../../mesh-agent/identity/workload-certificates.ts';
import {
  CART,
  openAuthority,
  recordingLog,
  refusal,
  requestFor,
  TRUST_DOMAIN,
  temporaryDirectory,
  verifyWithOpenssl,
} from '../../unit/mesh-agent/identity/support.ts';

const NODE = `spiffe://${TRUST_DOMAIN}/node/n1`;
const WEB = `spiffe://${TRUST_DOMAIN}/ns/shop/sa/web`;
const METHOD = '/istio.v1.auth.IstioCertificateService/CreateCertificate';
const DEADLINE_MS = 20_000;

interface ControlPlane {
  authority: MeshAuthority;
  tokens: JoinTokens;
  serverTls: ServerTls;
  counts: CertificateServiceCounts;
  address: string;
  lines: ReturnType<typeof recordingLog>['lines'];
  /** Workloads that run on n1. */
  onNode: Set<string>;
  blocked: Set<string>;
  server: grpc.Server;
}

async function startControlPlane(t: TestContext): Promise<ControlPlane> {
  const authority = await openAuthority(t);
  const tokens = new JoinTokens(join(temporaryDirectory(t), 'tokens'), TRUST_DOMAIN);
  const { log, lines } = recordingLog();
  const onNode = new Set([CART, WEB]);
  const blocked = new Set<string>();
  const server = new grpc.Server();
  t.after(() => server.forceShutdown());
  const counts = await addCertificateService(server, {
    authority,
    attestors: [tokens, new CertificateAttestor(TRUST_DOMAIN)],
    runsOnNode: (node, identity) => node === 'n1' && onNode.has(identity),
    isBlocked: (identity) => blocked.has(identity),
    log,
  });
  const names = { identity: `spiffe://${TRUST_DOMAIN}/ns/system/sa/control`, dnsNames: ['localhost'] };
  const serverTls = await ServerTls.start(authority, names, log);
  t.after(() => serverTls.close());
  const credentials = await serverTls.credentials();
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync('127.0.0.1:0', credentials, (error, bound) => (error ? reject(error) : resolve(bound)));
  });
  return { authority, tokens, serverTls, counts, address: `127.0.0.1:${port}`, lines, onNode, blocked, server };
}

interface Node {
  trust: TrustStore;
  client: CertificateClient;
  store: WorkloadCertificates;
}

async function startNode(t: TestContext, control: ControlPlane, token: string | null, roots?: string): Promise<Node> {
  const { log } = recordingLog();
  const trust = await TrustStore.open(TRUST_DOMAIN, roots ?? bundleToPem(control.authority.bundle), null, log);
  const client = new CertificateClient({
    address: control.address,
    serverName: 'localhost',
    trust,
    token: async () => token,
    certificate: () => store.get(NODE),
  });
  const store: WorkloadCertificates = new WorkloadCertificates({ source: client, trust, log });
  t.after(() => {
    store.close();
    client.close();
  });
  return { trust, client, store };
}

const wait = (node: Node, identity: string): Promise<WorkloadCertificate> =>
  node.store.wait(identity, AbortSignal.timeout(DEADLINE_MS));

/** A handshake in which both sides must show a certificate; resolves to the ids that each saw. */
async function handshake(server: WorkloadCertificate, client: WorkloadCertificate, roots: string): Promise<string[]> {
  const options = ({ chainPem, keyPem }: WorkloadCertificate): tls.SecureContextOptions => ({
    cert: chainPem,
    key: keyPem,
    ca: roots,
    minVersion: 'TLSv1.3',
  });
  const listener = tls.createServer({ ...options(server), requestCert: true, rejectUnauthorized: true });
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  try {
    const seen = new Promise<string>((resolve, reject) => {
      listener.once('secureConnection', (socket) => {
        resolve(socket.getPeerX509Certificate()!.subjectAltName!);
        socket.end();
      });
      listener.once('tlsClientError', reject);
    });
    const { port } = listener.address() as AddressInfo;
    // The name of a workload is its identity, which is checked instead of a hostname.
    const socket = tls.connect({ port, host: '127.0.0.1', ...options(client), checkServerIdentity: () => undefined });
    const connected = new Promise((resolve, reject) => socket.once('secureConnect', resolve).once('error', reject));
    await Promise.all([connected, seen]);
    const shown = socket.getPeerX509Certificate()!.subjectAltName!;
    socket.end();
    return [await seen, shown];
  } finally {
    listener.close();
  }
}

test('a node joins once with a token, and from then on gets certificates of its workloads with its own', async (t) => {
  const control = await startControlPlane(t);
  const token = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: 1 });
  const node = await startNode(t, control, token);
  node.store.hold(NODE);
  await wait(node, NODE);
  for (const identity of [CART, WEB]) node.store.hold(identity);
  const [cart, web] = [await wait(node, CART), await wait(node, WEB)];
  assert.deepEqual((await control.tokens.list())[0]!.used, 1);
  assert.equal(control.counts.issued, 3);
  const roots = bundleToPem(node.trust.current);
  for (const purpose of ['sslserver', 'sslclient']) {
    verifyWithOpenssl(temporaryDirectory(t), splitCertificates(cart.chainPem), roots, purpose);
  }
  assert.deepEqual(await handshake(cart, web, roots), [`URI:${WEB}`, `URI:${CART}`]);
  const other = await openAuthority(t);
  await assert.rejects(handshake(cart, web, bundleToPem(other.bundle)));
  // The token is used up: a second node does not get in with it.
  const second = await startNode(t, control, token);
  await assert.rejects(second.client.request(await requestFor(NODE), NODE, 0), refusal('unauthenticated', /used up/));
});

test('who may not have an identity is refused by name, and nothing is signed or counted for it', async (t) => {
  const control = await startControlPlane(t);
  const token = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: 2 });
  const node = await startNode(t, control, token);
  const ask = async (identity: string, csr?: string): Promise<string[]> =>
    node.client.request(csr ?? (await requestFor(identity)), identity, 0);
  const elsewhere = `spiffe://${TRUST_DOMAIN}/ns/shop/sa/elsewhere`;
  await assert.rejects(ask(elsewhere), refusal('identity-not-allowed', /may not have/));
  await assert.rejects(ask(`spiffe://${TRUST_DOMAIN}/node/n2`), refusal('identity-not-allowed'));
  await assert.rejects(ask('spiffe://other.example/ns/shop/sa/cart'), refusal('identity-not-allowed', /trust domain/));
  await assert.rejects(ask('nonsense', await requestFor(CART)), refusal('csr-malformed', /not an identity/));
  // Asking for one and naming another in the request.
  await assert.rejects(ask(CART, await requestFor(elsewhere)), refusal('csr-malformed', /elsewhere/));
  await assert.rejects(ask(CART, 'junk'), refusal('csr-malformed', /PEM/));
  await assert.rejects(ask(CART, 'x'.repeat(100_000)), refusal('csr-malformed', /larger/));
  for (const wrong of [null, 'pj1_00000000_x', 'nonsense']) {
    const stranger = await startNode(t, control, wrong);
    await assert.rejects(stranger.client.request(await requestFor(CART), CART, 0), refusal('unauthenticated'));
  }
  assert.equal(control.counts.issued, 0);
  assert.equal((await control.tokens.list())[0]!.used, 0);
  assert.deepEqual(control.counts.refused, {
    'identity-not-allowed': 3,
    'spiffe-id': 1,
    'csr-names': 1,
    'csr-malformed': 1,
    'csr-oversized': 1,
    unauthenticated: 3,
  });
  // A workload that leaves the node takes the node's right to its certificate along.
  assert.equal((await ask(CART)).length, 2);
  control.onNode.delete(CART);
  await assert.rejects(ask(CART), refusal('identity-not-allowed'));
});

test('a node gets no certificate of a workload that is blocked, and knows why; the others it gets', async (t) => {
  const control = await startControlPlane(t);
  control.blocked.add(CART);
  const token = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: null });
  const node = await startNode(t, control, token);
  node.store.hold(NODE);
  await wait(node, NODE);
  for (const identity of [CART, WEB]) node.store.hold(identity);
  await wait(node, WEB);
  while (node.store.errorOf(CART) === null) await new Promise((resolve) => setImmediate(resolve));
  const { code, message } = node.store.errorOf(CART)!;
  assert.deepEqual(
    [code, message],
    ['identity-not-allowed', `the CA refuses: ${CART} is blocked (attestation.blockedIdentities)`],
  );
  assert.equal(node.store.get(CART), null);
  // One that the node has already stays.
  control.blocked.add(WEB);
  await assert.rejects(node.client.request(await requestFor(WEB), WEB, 0), refusal('identity-not-allowed', /blocked/));
  assert.ok(node.store.get(WEB));
  control.blocked.clear();
  await wait(node, CART);
});

/** Asks for an identity with a certificate that an issuer has signed for another one. */
async function requestWithCertificate(
  t: TestContext,
  { authority, address }: ControlPlane,
  issuer: MeshAuthority,
  identity: string,
  wanted: string,
): Promise<string[]> {
  const key = await generateKey();
  const { chain } = await issuer.issue(createSigningRequest(identity, key), identity);
  const trust = await TrustStore.open(TRUST_DOMAIN, bundleToPem(authority.bundle), null, recordingLog().log);
  const keyPem = key.export({ type: 'pkcs8', format: 'pem' }) as string;
  const client = new CertificateClient({
    address,
    serverName: 'localhost',
    trust,
    token: async () => null,
    certificate: () => ({ chainPem: chain.join(''), keyPem }),
  });
  t.after(() => client.close());
  return client.request(await requestFor(wanted), wanted, 0);
}

test('a workload certificate renews itself and nothing else, and one of another CA nothing at all', async (t) => {
  const control = await startControlPlane(t);
  const ask = (issuer: MeshAuthority, identity: string, wanted: string): Promise<string[]> =>
    requestWithCertificate(t, control, issuer, identity, wanted);
  const { authority } = control;
  assert.equal(new X509Certificate((await ask(authority, CART, CART))[0]!).subjectAltName, `URI:${CART}`);
  await assert.rejects(ask(authority, CART, WEB), refusal('identity-not-allowed'));
  await assert.rejects(ask(authority, CART, NODE), refusal('identity-not-allowed'));
  // Same names, another root: TLS does not vouch for it, so nobody has said who this is.
  await assert.rejects(ask(await openAuthority(t), NODE, CART), refusal('unauthenticated'));
});

test('a CA that is not the mesh’s, or not there, gets nothing and is named', async (t) => {
  const control = await startControlPlane(t);
  const token = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: null });
  const other = await openAuthority(t);
  const misled = await startNode(t, control, token, bundleToPem(other.bundle));
  const foreign = await misled.client.request(await requestFor(NODE), NODE, 0).catch((error: unknown) => error);
  assert.ok(foreign instanceof IdentityError);
  assert.equal(foreign.code, 'ca-unreachable');
  assert.match(foreign.message, /127\.0\.0\.1.*certificate/);
  assert.doesNotMatch(foreign.message, /Resolution note/);
  assert.match(foreign.advice, /is not who this node expects: get the roots anew/);
  assert.deepEqual(control.counts, { issued: 0, refused: {} });
  const node = await startNode(t, control, token);
  await node.client.request(await requestFor(NODE), NODE, 0);
  control.server.forceShutdown();
  const away = await node.client.request(await requestFor(NODE), NODE, 0).catch((error: unknown) => error);
  assert.ok(away instanceof IdentityError);
  assert.deepEqual([away.code, /that the control plane runs/.test(away.advice)], ['ca-unreachable', true]);
});

test('the bytes on the wire are those of Istio’s protocol', async (t) => {
  const control = await startControlPlane(t);
  const token = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: null });
  // Fields by number, written by hand: csr 1, validity_duration 3, metadata 4 (a Struct: fields 1, map entry
  // of key 1 and value 2, string_value 3).
  const field = (number: number, bytes: Uint8Array | string): Buffer => {
    const content = Buffer.from(bytes as string);
    return Buffer.concat([Buffer.of((number << 3) | 2), varint(content.length), content]);
  };
  const value = field(3, CART);
  const struct = field(1, Buffer.concat([field(1, 'ImpersonatedIdentity'), field(2, value)]));
  const request = Buffer.concat([field(1, await requestFor(CART)), Buffer.of(3 << 3), varint(3600), field(4, struct)]);
  const credentials = grpc.credentials.createSsl(Buffer.from(bundleToPem(control.authority.bundle)));
  const client = new grpc.Client(control.address, credentials, { 'grpc.ssl_target_name_override': 'localhost' });
  t.after(() => client.close());
  const metadata = new grpc.Metadata();
  metadata.set('authorization', `Bearer ${token}`);
  const same = (bytes: Buffer): Buffer => bytes;
  const response = await new Promise<Buffer>((resolve, reject) => {
    client.makeUnaryRequest(METHOD, same, same, request, metadata, (error, bytes) =>
      error ? reject(error) : resolve(bytes!),
    );
  });
  const texts = readStrings(response);
  // Leaf, intermediate, and all roots in the last text, as ztunnel takes them apart.
  assert.deepEqual(
    texts.map(({ number }) => number),
    [1, 1, 1],
  );
  assert.deepEqual(
    texts.map(({ text }) => splitCertificates(text).length),
    [1, 1, 1],
  );
  assert.equal(texts[2]!.text, bundleToPem(control.authority.bundle));
  const leaf = new X509Certificate(texts[0]!.text);
  assert.equal(leaf.subjectAltName, `URI:${CART}`);
  const lifetimeMs = Date.parse(leaf.validTo) - Date.now();
  assert.ok(lifetimeMs > 3_500_000 && lifetimeMs <= 3_601_000, `${lifetimeMs}`);
});

test('the root is rotated while a node is served: every certificate, the server’s too, moves over', async (t) => {
  const control = await startControlPlane(t);
  const { authority, serverTls } = control;
  const token = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: 1 });
  const node = await startNode(t, control, token);
  const away = await startNode(t, control, token);
  node.store.hold(NODE);
  const stale = await wait(node, NODE);
  const [oldRoot] = authority.bundle.roots;
  authority.proxyConnected('n1');
  await authority.startRotation();
  const { nextRoot } = authority.rotationStatus();
  // The node as it will be: takes the bundle, renews what another root has signed, says so.
  while (authority.rotationStatus().phase !== 'idle') {
    await node.trust.apply(bundleToJson(authority.bundle));
    if (node.trust.current.issuer === nextRoot && node.store.rootsInUse().join() !== nextRoot) {
      // Not to wait for the spread of renewals: held anew.
      node.store.hold(CART);
      await wait(node, CART);
      assert.equal(node.store.get(CART)!.rootId, nextRoot);
      const chain = await node.client.request(await requestFor(NODE), NODE, 0);
      assert.equal(chain.length, 3);
      authority.proxyConfirmed('n1', node.trust.current.sequence, [nextRoot!]);
    } else {
      authority.proxyConfirmed('n1', node.trust.current.sequence, node.store.rootsInUse());
    }
    await authority.settled();
    if (authority.rotationStatus().phase === 'removing') {
      await node.trust.apply(bundleToJson(authority.bundle));
      authority.proxyConfirmed('n1', node.trust.current.sequence, [nextRoot!]);
      await authority.settled();
    }
  }
  assert.equal(authority.rotationStatus().activeRoot, nextRoot);
  const endMs = performance.now() + DEADLINE_MS;
  while (splitCertificates(serverTls.current!.chainPem).length < 3 && performance.now() < endMs) {
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
  // The server takes certificates of the new root, and none of the old one any more.
  assert.equal((await requestWithCertificate(t, control, authority, NODE, CART)).length, 2);
  assert.equal(stale.rootId, oldRoot!.id);
  const behind = new CertificateClient({
    address: control.address,
    serverName: 'localhost',
    trust: node.trust,
    token: async () => null,
    certificate: () => stale,
  });
  t.after(() => behind.close());
  await assert.rejects(behind.request(await requestFor(CART), CART, 0), refusal('unauthenticated'));
  // New connections: to who has the new root, and, by the link, to a node that slept and knows only the old one.
  const newcomer = await control.tokens.create({ node: 'n1', expiresMs: Date.now() + 60_000, uses: null });
  const fresh = await startNode(t, control, newcomer);
  assert.equal((await fresh.client.request(await requestFor(NODE), NODE, 0)).length, 2);
  assert.deepEqual(
    away.trust.current.roots.map(({ id }) => id),
    [oldRoot!.id],
  );
  const sleeper = await startNode(t, control, newcomer, oldRoot!.pem);
  assert.equal((await sleeper.client.request(await requestFor(NODE), NODE, 0)).length, 2);
});

function varint(value: number): Buffer {
  const bytes: number[] = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value & 127) | 128);
  return Buffer.of(...bytes, value);
}

/** The length-delimited fields of a message. */
function readStrings(bytes: Buffer): { number: number; text: string }[] {
  const fields: { number: number; text: string }[] = [];
  for (let i = 0; i < bytes.length; ) {
    const number = bytes[i]! >> 3;
    assert.equal(bytes[i]! & 7, 2);
    let length = 0;
    let shift = 0;
    do {
      i++;
      length |= (bytes[i]! & 127) << shift;
      shift += 7;
    } while (bytes[i]! > 127);
    i++;
    fields.push({ number, text: bytes.toString('utf8', i, i + length) });
    i += length;
  }
  return fields;
}
