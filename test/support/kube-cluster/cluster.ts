// A real Kubernetes API server for tests: etcd and kube-apiserver as processes of this machine, on loopback only.
//
// There are no nodes, kubelets or controllers: whoever needs a running pod writes its status. The programs are those
// that $ETCD and $KUBE_APISERVER name (build.sh makes them; programs.ts says whether they are there).

import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync, type KeyObject, randomUUID, sign } from 'node:crypto';
import { once } from 'node:events';
import { appendFileSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:https';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { KubeConfig } from '@kubernetes/client-node';
import { parseAllDocuments } from 'yaml';
import { temporaryDirectory } from '../../integration/support.ts';

/** A safety net: an API server is there after some seconds. */
const START_LIMIT_MS = 60_000;
const POLL_MS = 100;

/** Issuer of service-account tokens, and the audience of those for the API server itself. */
const ISSUER = 'https://kubernetes.default.svc.cluster.local';

/** An object of Kubernetes as the API server answers; tests know what is inside. */
// biome-ignore lint/suspicious/noExplicitAny: the API is data here
export type KubeObject = any;

/** What the API server said. */
export interface KubeAnswer {
  status: number;
  body: KubeObject;
}

/** Options of a request. */
export interface KubeRequest {
  /** Sent as JSON. */
  body?: object;
  /** Media type of the body; JSON unless said otherwise. */
  type?: string;
  /** Bearer token; the administrator's unless said otherwise. */
  token?: string;
}

/** etcd and an API server; both end with the test. */
export class KubeCluster {
  /** Where the API server is. */
  readonly url: string;
  /** File with the authority of its certificate. */
  readonly caFile: string;
  private readonly directory: string;
  private readonly etcdPort: number;
  private readonly admin: string = randomUUID();
  private readonly key: KeyObject;
  private readonly agent: Agent;
  private readonly flags: readonly string[];
  private readonly children = new Set<ChildProcess>();
  private api: ChildProcess | null = null;

  private constructor(directory: string, etcdPort: number, apiPort: number, flags: readonly string[]) {
    this.directory = directory;
    this.etcdPort = etcdPort;
    this.flags = flags;
    this.url = `https://127.0.0.1:${apiPort}`;
    this.caFile = join(directory, 'apiserver.crt');
    this.agent = new Agent({ keepAlive: true });
    const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
    this.key = privateKey;
    writeFileSync(join(directory, 'key.pem'), privateKey.export({ type: 'pkcs8', format: 'pem' }), { mode: 0o600 });
    writeFileSync(join(directory, 'tokens.csv'), `${this.admin},admin,admin,system:masters\n`, { mode: 0o600 });
  }

  /** Starts both; resolves when the API server is ready. `flags`: further ones of kube-apiserver. */
  static async start(t: TestContext, flags: readonly string[] = []): Promise<KubeCluster> {
    const directory = temporaryDirectory(t);
    const [etcdPort, peerPort, apiPort] = await freePorts(3);
    const cluster = new KubeCluster(directory, etcdPort!, apiPort!, flags);
    t.after(() => cluster.end());
    const [client, peer] = [etcdPort, peerPort].map((port) => `http://127.0.0.1:${port}`);
    cluster.spawn(process.env.ETCD!, 'etcd', [
      `--data-dir=${join(directory, 'etcd')}`,
      `--listen-client-urls=${client}`,
      `--advertise-client-urls=${client}`,
      `--listen-peer-urls=${peer}`,
      `--initial-advertise-peer-urls=${peer}`,
      `--initial-cluster=default=${peer}`,
      '--unsafe-no-fsync',
    ]);
    await cluster.startApi();
    return cluster;
  }

  /** Starts the API server (again). */
  async startApi(): Promise<void> {
    const key = join(this.directory, 'key.pem');
    this.api = this.spawn(process.env.KUBE_APISERVER!, 'kube-apiserver', [
      `--etcd-servers=http://127.0.0.1:${this.etcdPort}`,
      '--bind-address=127.0.0.1',
      `--secure-port=${new URL(this.url).port}`,
      // Nobody asks there; without it an address of the machine is looked for.
      '--advertise-address=192.0.2.1',
      '--endpoint-reconciler-type=none',
      `--cert-dir=${this.directory}`,
      `--token-auth-file=${join(this.directory, 'tokens.csv')}`,
      '--authorization-mode=RBAC',
      `--service-account-issuer=${ISSUER}`,
      `--service-account-signing-key-file=${key}`,
      `--service-account-key-file=${key}`,
      '--service-cluster-ip-range=10.96.0.0/16',
      ...this.flags,
    ]);
    const limitMs = performance.now() + START_LIMIT_MS;
    for (;;) {
      const answer = await this.request('GET', '/readyz').catch(() => null);
      if (answer?.status === 200) return;
      if (this.api.exitCode !== null || performance.now() > limitMs) {
        const log = readFileSync(join(this.directory, 'kube-apiserver.log'), 'utf8');
        throw new Error(`the API server is not there:\n${log.slice(-4000)}`);
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  /** Kills the API server, as a crash would; etcd goes on. */
  async killApi(): Promise<void> {
    if (this.api !== null) await kill(this.api);
    this.api = null;
  }

  /** One request; rejects when there is no answer. */
  async request(method: string, path: string, options: KubeRequest = {}): Promise<KubeAnswer> {
    const { body, type = 'application/json', token = this.admin } = options;
    const outgoing = request(this.url + path, {
      method,
      agent: this.agent,
      ca: readFileSync(this.caFile),
      headers: { authorization: `Bearer ${token}`, ...(body === undefined ? {} : { 'content-type': type }) },
    });
    outgoing.end(body === undefined ? undefined : JSON.stringify(body));
    const [incoming] = await once(outgoing, 'response');
    let text = '';
    for await (const piece of incoming.setEncoding('utf8')) text += piece;
    return { status: incoming.statusCode, body: text.startsWith('{') ? JSON.parse(text) : text };
  }

  /** The same, for what has to succeed: returns the object. */
  async must(method: string, path: string, options: KubeRequest = {}): Promise<KubeObject> {
    const { status, body } = await this.request(method, path, options);
    assert.ok(status < 300, `${method} ${path}: ${status} ${JSON.stringify(body)}`);
    return body;
  }

  /** Creates or replaces an object, as `kubectl apply --server-side --validate=strict` does; `query`: further parts. */
  apply(object: KubeObject, query = ''): Promise<KubeAnswer> {
    const path = `${pathOf(object)}?fieldManager=test&force=true&fieldValidation=Strict${query}`;
    return this.request('PATCH', path, { body: object, type: 'application/apply-patch+yaml' });
  }

  /** Applies all objects of a YAML text; every one has to be accepted. */
  async applyAll(text: string): Promise<void> {
    for (const document of parseAllDocuments(text)) {
      const object = document.toJS();
      if (object === null) continue;
      const { status, body } = await this.apply(object);
      assert.ok(status < 300, `${object.kind} ${object.metadata.name}: ${JSON.stringify(body)}`);
    }
  }

  /** A pod that runs: what a scheduler and a kubelet would do to it. Its service account has to be there. */
  async runPod(
    name: string,
    {
      namespace,
      account,
      node,
      ip,
      labels = {},
    }: Record<'namespace' | 'account' | 'node' | 'ip', string> & {
      labels?: Record<string, string>;
    },
  ): Promise<KubeObject> {
    const path = `/api/v1/namespaces/${namespace}/pods`;
    const spec = {
      nodeName: node,
      serviceAccountName: account,
      automountServiceAccountToken: false,
      terminationGracePeriodSeconds: 0,
      containers: [{ name: 'main', image: 'example', ports: [{ name: 'http', containerPort: 8080 }] }],
    };
    await this.must('POST', path, { body: { metadata: { name, labels }, spec } });
    const conditions = [{ type: 'Ready', status: 'True' }];
    return this.patchStatus(`${path}/${name}`, { phase: 'Running', podIP: ip, podIPs: [{ ip }], conditions });
  }

  /** Writes parts of an object's status. */
  patchStatus(path: string, status: object): Promise<KubeObject> {
    return this.must('PATCH', `${path}/status`, { body: { status }, type: 'application/strategic-merge-patch+json' });
  }

  /** A service account's token (TokenRequest); `spec`: audiences, expirationSeconds, boundObjectRef. */
  async token(namespace: string, account: string, spec: object = {}): Promise<string> {
    const path = `/api/v1/namespaces/${namespace}/serviceaccounts/${account}/token`;
    return (await this.must('POST', path, { body: { spec } })).status.token;
  }

  /** The same token with other claims, signed by the cluster's key: what the API server itself would not make. */
  forge(token: string, claims: Record<string, unknown>): string {
    const [head, payload] = token.split('.');
    const changed = { ...JSON.parse(Buffer.from(payload!, 'base64url').toString()), ...claims };
    const text = `${head}.${Buffer.from(JSON.stringify(changed)).toString('base64url')}`;
    return `${text}.${sign('sha256', Buffer.from(text), this.key).toString('base64url')}`;
  }

  /** Credentials with this token; `server`: where the API server is reached instead. */
  configFor(token = this.admin, server = this.url): KubeConfig {
    const config = new KubeConfig();
    config.loadFromClusterAndUser(
      { name: 'c', server, caFile: this.caFile, skipTLSVerify: false },
      { name: 'u', token },
    );
    return config;
  }

  /** A kubeconfig file whose token is in a file of its own; `server`: where the API server is reached instead. */
  configFile(t: TestContext, tokenFile: string, server = this.url): string {
    const file = join(temporaryDirectory(t), 'config');
    const text = JSON.stringify({
      apiVersion: 'v1',
      kind: 'Config',
      clusters: [{ name: 'c', cluster: { server, 'certificate-authority': this.caFile } }],
      users: [{ name: 'u', user: { tokenFile } }],
      contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
      'current-context': 'x',
    });
    writeFileSync(file, text, { mode: 0o600 });
    return file;
  }

  /** Makes etcd forget everything before now. */
  async compact(): Promise<void> {
    const etcd = `http://127.0.0.1:${this.etcdPort}/v3/kv`;
    const post = async (path: string, body: object): Promise<KubeObject> => {
      const response = await fetch(etcd + path, { method: 'POST', body: JSON.stringify(body) });
      assert.equal(response.status, 200);
      return response.json();
    };
    const { header } = await post('/range', { key: 'AA==' });
    await post('/compaction', { revision: header.revision, physical: true });
  }

  private spawn(command: string, name: string, args: string[]): ChildProcess {
    const file = join(this.directory, `${name}.log`);
    appendFileSync(file, '');
    const log = openSync(file, 'a');
    const child = spawn(command, args, { stdio: ['ignore', log, log], cwd: this.directory });
    this.children.add(child);
    return child;
  }

  private async end(): Promise<void> {
    this.agent.destroy();
    await Promise.all([...this.children].map(kill));
  }
}

async function kill(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) return;
  const closed = once(child, 'close');
  child.kill('SIGKILL');
  await closed;
}

/** Ports that nobody uses at the moment: neither program takes port 0. */
async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'));
  await Promise.all(servers.map((server) => once(server, 'listening')));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => once(server.close(), 'close')));
  return ports;
}

const PLURALS: Record<string, string> = { NetworkPolicy: 'networkpolicies', Endpoints: 'endpoints' };
const CLUSTER_WIDE = new Set(['Namespace', 'Node', 'ClusterRole', 'ClusterRoleBinding']);

/** Where an object lives. */
export function pathOf({ apiVersion, kind, metadata }: KubeObject): string {
  const group = apiVersion.includes('/') ? `/apis/${apiVersion}` : `/api/${apiVersion}`;
  const namespace = CLUSTER_WIDE.has(kind) ? '' : `/namespaces/${metadata.namespace ?? 'default'}`;
  return `${group}${namespace}/${PLURALS[kind] ?? `${kind.toLowerCase()}s`}/${metadata.name}`;
}
