// The chart and the plain manifests: complete, consistent, with no more rights than are needed.

import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Compile } from 'typebox/schema';
import { parseAllDocuments } from 'yaml';
import { type ControlConfig, loadControl } from '../../../mesh-agent/commands/control-config.ts';
import { podRecord } from '../../../mesh-agent/kubernetes/records.ts';
import { loadNode, type NodeConfig } from '../../../mesh-agent/node/node-config.ts';
import type { PolicyRule } from '../../support/kube-api/access.ts';
import { configFor, Followed, follow, startApi } from '../../support/kube-api/harness.ts';
import { pod } from '../../support/kube-api/objects.ts';
import { problemsOf } from '../../support/kube-api/schema.ts';
import { portcullis, temporaryDirectory } from '../support.ts';

const deploy = fileURLToPath(new URL('../../../deploy', import.meta.url));
const manifests = join(deploy, 'manifests');
const chart = join(deploy, 'helm/portcullis');
/** What the chart renders with every option, for machines without helm; `values.yaml` beside it has the options. */
const everyOption = fileURLToPath(new URL('../../data/chart/every-option.yaml', import.meta.url));
const helm = process.env.HELM ?? 'helm';
const noHelm = spawnSync(helm, ['version', '--short']).status === 0 ? false : 'helm is not installed';

/** Any object of Kubernetes; only tests that know its kind look inside. */
// biome-ignore lint/suspicious/noExplicitAny: manifests are data here
type Manifest = any;

function objectsIn(text: string): Manifest[] {
  return parseAllDocuments(text).flatMap((document) => {
    assert.deepEqual(document.errors, []);
    const object = document.toJS();
    return object === null ? [] : [object];
  });
}

function render(...options: string[]): { status: number | null; stdout: string; stderr: string } {
  const common = ['template', 'portcullis', chart, '--namespace', 'portcullis', '--kube-version', '1.32.0'];
  return spawnSync(helm, [...common, ...options], { encoding: 'utf8' });
}

const files = readdirSync(manifests).filter((name) => name.endsWith('.yaml'));
const plain = files.flatMap((name) => objectsIn(readFileSync(join(manifests, name), 'utf8')));
const find = (kind: string, name: string): Manifest =>
  plain.find((object) => object.kind === kind && object.metadata.name === name);
const workloads = [
  find('Deployment', 'portcullis-control'),
  find('DaemonSet', 'portcullis-node'),
  find('Deployment', 'portcullis-gateway'),
];

test('the plain manifests, and what is committed of every option, are what the chart renders', {
  skip: noHelm,
}, (t) => {
  const fresh = temporaryDirectory(t);
  const run = spawnSync(join(manifests, 'render.sh'), [fresh], {
    encoding: 'utf8',
    env: { ...process.env, HELM: helm },
  });
  assert.equal(run.status, 0, run.stderr);
  for (const name of readdirSync(fresh)) {
    const committed = name === basename(everyOption) ? everyOption : join(manifests, name);
    assert.equal(readFileSync(join(fresh, name), 'utf8'), readFileSync(committed, 'utf8'), name);
  }
});

test('every object has the fields that its type has, and those that it must have', () => {
  assert.ok(plain.length >= 15);
  for (const object of plain) assert.deepEqual(problemsOf(object), [], object.metadata.name);
  // And the check can fail.
  const broken = structuredClone(find('DaemonSet', 'portcullis-node'));
  broken.spec.template.spec.containers[0].volumeMount = [];
  broken.spec.template.spec.hostNetwork = 'yes';
  delete broken.spec.selector;
  broken.apiVersion = 'v1';
  assert.equal(problemsOf({ ...broken, apiVersion: 'extensions/v1' }).length, 4);
});

test('with every option all objects have the fields of their types, and the configuration fits the pod', () => {
  const objects = objectsIn(readFileSync(everyOption, 'utf8'));
  for (const object of objects) assert.deepEqual(problemsOf(object), [], object.metadata.name);
  for (const kind of ['PersistentVolumeClaim', 'DaemonSet']) assert.ok(objects.some((object) => object.kind === kind));
  const { ca, source } = loadedControl(objects);
  assert.deepEqual(Object.values(ca.files ?? {}).map(dirname), Array(3).fill('/etc/portcullis/ca'));
  assert.ok(source.kind === 'kubernetes' && source.policies?.directory === '/etc/portcullis/mesh');
  assert.equal(source.policies.lastGoodDirectory, '/var/lib/portcullis/last-good', 'a place that can be written to');
  const { spec } = objects.find(({ kind, metadata }) => kind === 'Deployment' && /-control$/.test(metadata.name));
  const { containers, volumes } = spec.template.spec;
  for (const [name, path, volume] of [
    ['ca', '/etc/portcullis/ca', { secret: { secretName: 'mesh-ca', defaultMode: 0o400 } }],
    // Not optional: a pod without it would have a mesh without policies.
    ['policies', '/etc/portcullis/mesh', { configMap: { name: 'mesh-policies' } }],
  ] as const) {
    const mount = containers[0].volumeMounts.find((one: Manifest) => one.name === name);
    assert.deepEqual(mount, { name, mountPath: path, readOnly: true }, 'no subPath, which would never change');
    const found = volumes.find((one: Manifest) => one.name === name);
    assert.deepEqual(found, { name, ...volume });
  }
});

test('parts that are not wanted are not rendered', { skip: noHelm }, () => {
  const plainObjects = objectsIn(render('--set', 'image=x').stdout);
  assert.ok(!plainObjects.some(({ kind }) => kind === 'DaemonSet'), 'the node proxy is a trial');
  const only = render('--set', 'image=x,control.enabled=false,networkPolicy.enabled=false');
  const kinds = objectsIn(only.stdout).map(({ kind }) => kind);
  assert.deepEqual(kinds.sort(), ['ConfigMap', 'Deployment', 'PodDisruptionBudget', 'Service', 'ServiceAccount']);
});

test('without an image nothing is rendered, and the error says what to do', { skip: noHelm }, () => {
  const run = render();
  assert.notEqual(run.status, 0);
  assert.match(run.stderr, /image must be set: .*deploy\/Dockerfile.*--set image=/);
  assert.equal(run.stdout, '');
});

const WRONG_VALUES = [
  ['gateway.replica=3', /replica/],
  ['gateway.adminPort=70000', /adminPort/],
  ['mesh.trustDomain=Not A Domain', /trustDomain/],
  ['control.replicas=2', /replicas/],
  ['control.policiesConfigMaps=policies', /policiesConfigMaps/],
] as const;

test('values that do not exist or make no sense are refused', { skip: noHelm }, () => {
  for (const [value, complaint] of WRONG_VALUES) {
    const run = render('--set', 'image=x', '--set', value);
    assert.notEqual(run.status, 0, value);
    assert.match(run.stderr, complaint);
  }
});

test('the schema of the values allows the defaults and every option, names each default, and refuses what is wrong', () => {
  const schema = Compile(JSON.parse(readFileSync(join(chart, 'values.schema.json'), 'utf8')));
  const valuesIn = (file: string): Manifest => objectsIn(readFileSync(file, 'utf8'))[0];
  const problems = (values: Manifest): string => JSON.stringify(schema.Errors(values)[1]);
  const defaults = valuesIn(join(chart, 'values.yaml'));
  const all = valuesIn(join(dirname(everyOption), 'values.yaml'));
  assert.equal(problems(defaults), '[]');
  assert.equal(problems(all), '[]');
  for (const [part, values] of Object.entries(all)) {
    assert.ok(part in defaults);
    if (typeof values !== 'object' || Array.isArray(values)) continue;
    for (const key of Object.keys(values as object)) assert.ok(key in defaults[part], `${part}.${key}`);
  }
  for (const [value, complaint] of WRONG_VALUES) {
    const [, part, key, text] = /^(\w+)\.(\w+)=(.*)$/.exec(value)!;
    const changed = { ...defaults[part!], [key!]: /^\d+$/.test(text!) ? Number(text) : text };
    assert.match(problems({ ...defaults, [part!]: changed }), complaint);
  }
});

test('selectors, ports, volumes and accounts that are named are there', () => {
  for (const { kind, metadata, spec } of workloads) {
    const { metadata: podMetadata, spec: podSpec } = spec.template;
    for (const [label, value] of Object.entries(spec.selector.matchLabels)) {
      assert.equal(podMetadata.labels[label], value, `${kind} ${metadata.name}`);
    }
    assert.ok(find('ServiceAccount', podSpec.serviceAccountName));
    const [container] = podSpec.containers;
    const volumes = podSpec.volumes.map(({ name }: { name: string }) => name);
    for (const mount of container.volumeMounts) assert.ok(volumes.includes(mount.name), mount.name);
    const config = podSpec.volumes.find(({ name }: { name: string }) => name === 'config').configMap.name;
    const [file] = Object.keys(find('ConfigMap', config).data);
    assert.equal(container.args.at(-1), `/etc/portcullis/${file}`);
    const ports = (container.ports ?? []).map(({ name }: { name: string }) => name);
    for (const probe of ['startupProbe', 'livenessProbe', 'readinessProbe']) {
      const { path, port } = container[probe].httpGet;
      assert.equal(path, probe === 'readinessProbe' ? '/readyz' : '/healthz');
      assert.ok(typeof port === 'number' || ports.includes(port), `${probe} of ${metadata.name}`);
    }
    assert.match(container.image, /^\$\{PORTCULLIS_IMAGE\}$/, 'nothing that could be pulled by mistake');
  }
  for (const { metadata, spec } of plain.filter(({ kind }) => kind === 'Service')) {
    const backend = workloads.find(({ spec: { selector } }) =>
      Object.entries(spec.selector).every(([label, value]) => selector.matchLabels[label] === value),
    );
    const ports = backend.spec.template.spec.containers[0].ports;
    for (const { targetPort } of spec.ports) {
      const found = ports.some((port: Manifest) => port.name === targetPort || port.containerPort === targetPort);
      assert.ok(found, `${metadata.name} ${targetPort}`);
    }
  }
});

test('control plane and gateway satisfy the restricted Pod Security Standard; the node has three rights more', () => {
  const [control, node, gateway] = workloads.map(({ spec }) => spec.template.spec);
  for (const podSpec of [control, gateway]) {
    assert.equal(podSpec.securityContext.runAsNonRoot, true);
    assert.equal(podSpec.securityContext.seccompProfile.type, 'RuntimeDefault');
    // The CA refuses files that the kubelet has opened to the group, so that must not happen at every mount.
    assert.equal(podSpec.securityContext.fsGroupChangePolicy, 'OnRootMismatch');
    for (const key of ['hostNetwork', 'hostPID', 'hostIPC']) assert.equal(podSpec[key], undefined);
    for (const { hostPath } of podSpec.volumes) assert.equal(hostPath, undefined);
    const { securityContext } = podSpec.containers[0];
    assert.equal(securityContext.allowPrivilegeEscalation, false);
    assert.deepEqual(securityContext.capabilities, { drop: ['ALL'] });
  }
  const { securityContext } = node.containers[0];
  assert.equal(securityContext.privileged, undefined);
  assert.deepEqual(securityContext.capabilities, { drop: ['ALL'], add: ['NET_ADMIN', 'SYS_ADMIN', 'SYS_PTRACE'] });
  for (const podSpec of [control, node, gateway]) {
    assert.equal(podSpec.containers[0].securityContext.readOnlyRootFilesystem, true);
    assert.equal(
      podSpec.automountServiceAccountToken,
      podSpec === control,
      'only the control plane asks the API server',
    );
  }
});

test('the role of the control plane is enough, and no rule or verb of it can be spared', async (t) => {
  const api = await startApi(t);
  const rules: PolicyRule[] = find('ClusterRole', 'portcullis-portcullis-control').rules;
  assert.equal(plain.filter(({ kind }) => /Role$/.test(kind)).length, 1, 'nobody else has a role');
  const account = 'system:serviceaccount:portcullis:portcullis-control';
  api.access.required = true;
  api.access.tokens.set('control', { username: account });
  api.access.tokens.set('a.b.c', { username: 'system:serviceaccount:shop:cart', audiences: ['portcullis'] });
  api.store.put('pods', pod('one'));
  const parts = rules.flatMap(({ apiGroups, resources, verbs }) =>
    resources.flatMap((resource) =>
      verbs.map((verb): PolicyRule => ({ apiGroups, resources: [resource], verbs: [verb] })),
    ),
  );
  for (const spared of [null, ...parts]) {
    api.access.rules.set(
      account,
      parts.filter((part) => part !== spared),
    );
    const followed = new Followed(async () => configFor(api, { token: 'control' }));
    t.after(() => followed.source.close());
    const started = followed.start().catch(() => {});
    const forbidden = (): string =>
      String(followed.lines.find(({ fields }) => fields.cause === 'forbidden')?.fields.resource);
    if (spared === null) {
      await started;
      await api.until(() => api.watches().length === 6);
      assert.equal(forbidden(), 'undefined');
      assert.equal((await followed.source.tokenReviewer('portcullis').review('a.b.c')).serviceAccount, 'cart');
    } else if (spared.resources[0] === 'tokenreviews') {
      await assert.rejects(followed.source.tokenReviewer('portcullis').review('a.b.c'), { code: 'ca-unreachable' });
    } else {
      while (forbidden() === 'undefined') await new Promise((resolve) => setImmediate(resolve));
      assert.equal(forbidden(), spared.resources[0], `without ${spared.verbs[0]}`);
    }
    await followed.source.close();
  }
});

test('a token of the cluster’s own audience is what the source shows, and others are refused', async (t) => {
  const api = await startApi(t);
  api.access.required = true;
  api.access.tokens.set('good', { username: 'system:serviceaccount:portcullis:portcullis-control' });
  await follow(t, api, { token: 'good' });
  const followed = new Followed(async () => configFor(api, { token: 'bad' }));
  t.after(() => followed.source.close());
  const started = followed.start();
  await api.until(() => api.seen.length > 20);
  await followed.source.close();
  await assert.rejects(started);
  assert.equal(followed.lines[0]!.fields.cause, 'unauthenticated');
});

test('the gateway’s configuration is valid, and listens where probes and service look', (t) => {
  const text: string = find('ConfigMap', 'portcullis-gateway').data['gateway.yaml'];
  const file = join(temporaryDirectory(t), 'gateway.yaml');
  writeFileSync(file, text);
  const run = spawnSync(portcullis, ['check', '--config', file], { encoding: 'utf8' });
  assert.equal(run.status, 0, run.stderr + run.stdout);
  const [{ admin, listeners }] = objectsIn(text);
  const ports = workloads[2].spec.template.spec.containers[0].ports.map((port: Manifest) => port.containerPort);
  const listened = [...listeners, admin].map(({ address }: { address: string }) => Number(address.split(':').at(-1)));
  assert.deepEqual(ports, listened);
});

/** The control plane's configuration among some objects, as the program reads it in a pod with all that is mounted. */
function loadedControl(objects: readonly Manifest[]): ControlConfig {
  const map = objects.find(({ kind, metadata }) => kind === 'ConfigMap' && metadata.name === 'portcullis-control');
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-chart-'));
  for (const name of ['ca', 'mesh']) mkdirSync(join(directory, name));
  for (const name of ['root', 'intermediate', 'intermediate-key']) writeFileSync(join(directory, `ca/${name}.pem`), '');
  const file = join(directory, 'control.yaml');
  writeFileSync(file, map.data['control.yaml'].replaceAll('/etc/portcullis', directory));
  const loaded = loadControl(file, {});
  rmSync(directory, { recursive: true });
  assert.ok('config' in loaded, 'errors' in loaded ? JSON.stringify(loaded.errors) : '');
  return JSON.parse(JSON.stringify(loaded.config).replaceAll(directory, '/etc/portcullis')) as ControlConfig;
}

/** The node proxy's configuration, valid but for the roots, which are mounted in the pod only. */
function loadedNode(): NodeConfig {
  const text: string = find('ConfigMap', 'portcullis-node').data['node.yaml'];
  const directory = mkdtempSync(join(tmpdir(), 'portcullis-chart-'));
  const file = join(directory, 'node.yaml');
  const [, roots] = /^ +roots: (\S+)$/m.exec(text)!;
  writeFileSync(file, text.replace(roots!, file));
  const loaded = loadNode(file, { NODE_NAME: 'worker-7' });
  rmSync(directory, { recursive: true });
  assert.ok('config' in loaded, 'errors' in loaded ? JSON.stringify(loaded.errors) : '');
  const { config } = loaded;
  assert.equal(config.node, 'worker-7');
  return { ...config, controlPlane: { ...config.controlPlane, rootsFile: roots! } };
}

test('the control plane’s configuration is valid, and fits the pod, its service and the nodes', () => {
  const config = loadedControl(plain);
  const [{ spec }] = workloads;
  const [container] = spec.template.spec.containers;
  const ports = container.ports.map((port: Manifest) => port.containerPort);
  assert.deepEqual([config.listen.port, config.admin?.port], ports);
  const service = find('Service', 'portcullis-control');
  assert.ok(config.serverNames.includes(`${service.metadata.name}.${service.metadata.namespace}.svc`));
  const nodeConfig = loadedNode();
  const [host] = nodeConfig.controlPlane.address.split(':');
  assert.ok(config.serverNames.includes(host!), 'nodes know it by this name');
  const mounts = container.volumeMounts.map(({ mountPath }: { mountPath: string }) => mountPath);
  assert.ok(mounts.includes(dirname(config.ca.directory)), 'the one place that can be written to');
  assert.equal(config.source.kind, 'kubernetes');
  const node = workloads[1];
  const nodeMounts = node.spec.template.spec.containers[0].volumeMounts.map((mount: Manifest) => mount.mountPath);
  for (const file of [nodeConfig.controlPlane.rootsFile, nodeConfig.token.file]) {
    assert.ok(nodeMounts.includes(dirname(file)), file);
  }
  // What Kubernetes makes is readable by all; the proxy makes a private one below it.
  assert.ok(nodeMounts.includes(dirname(nodeConfig.stateDirectory)));
  const account = `${node.metadata.namespace}/${node.spec.template.spec.serviceAccountName}`;
  assert.deepEqual(config.attestation.kubernetes?.nodeAccounts, [account]);
  assert.equal(
    `${config.serviceAccount.namespace}/${config.serviceAccount.name}`,
    `portcullis/${spec.template.spec.serviceAccountName}`,
  );
  const [{ serviceAccountToken }] = node.spec.template.spec.volumes.find(
    ({ name }: { name: string }) => name === 'token',
  ).projected.sources;
  assert.equal(serviceAccountToken.audience, config.attestation.kubernetes?.audience);
});

test('the sidecar of the example has what its configuration asks for, one right, and the application after it', (t) => {
  const { metadata, spec: podSpec } = find('Deployment', 'web').spec.template;
  assert.equal(podRecord({ metadata, spec: podSpec } as Manifest)!.sidecar, true, 'the label says that it is one');
  const [sidecar] = podSpec.initContainers;
  assert.equal(sidecar.restartPolicy, 'Always');
  assert.deepEqual(sidecar.startupProbe.exec.command.slice(1), ['mesh', 'ready']);
  const { capabilities, privileged, readOnlyRootFilesystem } = sidecar.securityContext;
  assert.deepEqual(
    [capabilities, privileged, readOnlyRootFilesystem],
    [{ drop: ['ALL'], add: ['NET_ADMIN'] }, undefined, true],
  );
  const volumes = podSpec.volumes.map(({ name }: { name: string }) => name);
  const mounts = new Map(sidecar.volumeMounts.map((mount: Manifest) => [mount.mountPath, mount.name]));
  for (const name of mounts.values()) assert.ok(volumes.includes(name), String(name));
  const file = join(temporaryDirectory(t), 'sidecar.yaml');
  const text: string = find('ConfigMap', 'portcullis-sidecar').data['sidecar.yaml'];
  assert.equal(sidecar.args.at(-1), '/etc/portcullis/sidecar.yaml');
  const [, roots] = /^ +roots: (\S+)$/m.exec(text)!;
  writeFileSync(file, text.replace(roots!, file));
  const fields: Record<string, string> = {
    'metadata.name': 'web-7',
    'metadata.namespace': 'shop',
    'status.podIP': '10.0.0.7',
    'spec.serviceAccountName': podSpec.serviceAccountName,
  };
  const env = sidecar.env.map(({ name, valueFrom }: Manifest) => [name, fields[valueFrom.fieldRef.fieldPath]]);
  const loaded = loadNode(file, Object.fromEntries(env));
  assert.ok('config' in loaded, 'errors' in loaded ? JSON.stringify(loaded.errors) : '');
  const { config } = loaded;
  assert.deepEqual(config.sidecar, { namespace: 'shop', name: 'web-7', address: '10.0.0.7', serviceAccount: 'web' });
  for (const path of [roots!, config.token.file, config.stateDirectory]) assert.ok(mounts.has(dirname(path)), path);
  const control = loadedControl(plain);
  assert.ok(control.serverNames.includes(config.controlPlane.address.split(':')[0]!));
  const token = podSpec.volumes.find(({ name }: { name: string }) => name === mounts.get(dirname(config.token.file)));
  assert.equal(token.projected.sources[0].serviceAccountToken.audience, control.attestation.kubernetes?.audience);
});
