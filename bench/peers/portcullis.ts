// Portcullis itself, started as a user starts it: `./portcullis run --config FILE`.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { TLS_HOST, TLS_SUITE } from '../lib/certificate.ts';
import { firstLine } from '../lib/machine.ts';
import { BenchProcess } from '../lib/processes.ts';
import { allHosts, allPrefixes, NEW_HOST } from '../lib/routes.ts';
import { BYSTANDER, trafficConfig } from '../lib/traffic.ts';
import { ALL_FEATURES, allBackends, GZIP_LEVELS, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

const repository = resolve(import.meta.dirname, '../..');
const launcher = join(repository, 'portcullis');

/** Portcullis of this repository, as it is in the working tree. */
export const portcullis: Peer = {
  name: 'portcullis',
  features: ALL_FEATURES,
  gzipLevels: GZIP_LEVELS,
  version() {
    if (!existsSync(launcher)) return null;
    const manifest = JSON.parse(readFileSync(join(repository, 'package.json'), 'utf8')) as { version: string };
    const commit = firstLine('git', ['-C', repository, 'describe', '--always', '--dirty']);
    return `Portcullis ${manifest.version}${commit === null ? '' : ` at ${commit}`}`;
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const config = join(options.dir, 'portcullis.yaml');
    writeFileSync(config, configText(options, false));
    const child = new BenchProcess({
      label: 'portcullis',
      command: launcher,
      args: ['run', '--config', config],
      dir: options.dir,
      core: options.core,
    });
    return {
      process: child,
      async reload() {
        writeFileSync(config, configText(options, true));
        child.signal('SIGHUP');
      },
    };
  },
};

function configText(options: ProxyOptions, withNewHost: boolean): string {
  const lines = [`workers: ${options.workers}`, 'admin: off'];
  if (options.accessLogPath !== null) lines.push(`accessLog: {path: ${options.accessLogPath}, format: json}`);
  lines.push('listeners:', `  - {name: in, address: "127.0.0.1:${options.port}"${listenerKeys(options)}}`);
  const protocol = options.upstreamProtocol === 'h2c' ? ', protocol: h2c' : '';
  const balancer = options.balance === 'RoundRobin' ? '' : `, loadBalancer: {policy: ${options.balance}}`;
  const endpoints = allBackends(options).map((address) => JSON.stringify(address));
  const traffic = options.traffic === null ? null : trafficConfig(options.traffic);
  const keys = `${protocol}${balancer}${traffic?.backend ?? ''}`;
  lines.push(...(traffic?.top ?? []));
  lines.push('backends:', `  - {name: b, endpoints: [${endpoints.join(', ')}]${keys}}`);
  if (options.bystanderPort !== null) {
    lines.push(`  - {name: ${BYSTANDER}, endpoints: ["127.0.0.1:${options.bystanderPort}"]}`);
  }
  lines.push('routes:');
  if (options.routes === 'one') {
    const rule = `${traffic?.rule ?? ''}${gzipKeys(options)}`;
    lines.push(`  - {name: all, ${routeKeys(options)}rules: [{backendRefs: [{name: b}]${rule}}]}`);
    return `${lines.join('\n')}\n`;
  }
  allHosts().forEach((host, index) => {
    lines.push(`  - name: r${index}`, `    hostnames: [${host}]`, '    rules:');
    for (const prefix of allPrefixes()) {
      lines.push(`      - matches: [{path: {type: PathPrefix, value: ${prefix}}}]`, '        backendRefs: [{name: b}]');
    }
  });
  if (withNewHost) lines.push(`  - {name: new, hostnames: [${NEW_HOST}], rules: [{backendRefs: [{name: b}]}]}`);
  return `${lines.join('\n')}\n`;
}

/** Protocols and TLS of the listener; nothing for the default. */
function listenerKeys({ protocol, tls }: ProxyOptions): string {
  if (protocol === 'tcp') return ', protocols: [tcp]';
  if (protocol === 'tls-passthrough') return ', tls: {mode: Passthrough}';
  if (tls === null) return protocol === 'h2' ? ', protocols: [h2c]' : '';
  const pair = `{certificate: ${tls.certificate}, key: ${tls.key}}`;
  const keys = `{certificates: [${pair}], minVersion: "1.3", cipherSuites: [${TLS_SUITE}]}`;
  return `${protocol === 'h2' ? '' : ', protocols: [http/1.1]'}, tls: ${keys}`;
}

/** The filter that compresses; nothing for the default. */
function gzipKeys({ gzipLevel }: ProxyOptions): string {
  if (gzipLevel === null) return '';
  return `, filters: [{type: Compression, compression: {encodings: [gzip], levels: {gzip: ${gzipLevel}}}}]`;
}

/** Kind of the one route; nothing for the default. */
function routeKeys({ protocol }: ProxyOptions): string {
  if (protocol === 'tcp') return 'kind: TCP, ';
  return protocol === 'tls-passthrough' ? `kind: TLS, hostnames: [${TLS_HOST}], ` : '';
}
