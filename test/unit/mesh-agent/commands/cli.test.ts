// The mesh's commands on the command line: help, and what is said to wrong words and options.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { runCli } from '../../../../gateway/cli.ts';

async function run(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  let stdout = '';
  let stderr = '';
  const code = await runCli(args, {
    out: (text) => void (stdout += text),
    err: (text) => void (stderr += text),
  });
  return { code, stdout, stderr };
}

test('help is there for each command, and unknown words get the one that was probably meant', async () => {
  for (const [args, text] of [
    [['control', '--help'], /portcullis control --config FILE/],
    [['mesh', '--help'], /portcullis mesh status/],
    [['mesh', 'status', '--help'], /--admin HOST:PORT/],
    [['mesh', 'token', '--help'], /token revoke/],
    [['mesh', 'token', 'create', '--help'], /--service-account/],
    [['mesh', 'capture', '--help'], /capture install/],
    [['mesh', 'node', '--help'], /portcullis mesh node --config FILE/],
    [['mesh', 'ready', '--help'], /portcullis mesh ready /],
    [['mesh', 'graph', '--help'], /portcullis mesh graph \[--admin/],
  ] as const) {
    const { code, stdout } = await run(...args);
    assert.equal(code, 0, args.join(' '));
    assert.match(stdout, text);
  }
  for (const [args, text] of [
    [['contol'], /unknown command contol: did you mean control\?/],
    [['control'], /control needs --config FILE/],
    [['control', 'mesh.yaml'], /a file is given as --config mesh\.yaml/],
    [['mesh'], /^$/],
    [['mesh', 'statsu'], /unknown command statsu: did you mean status\?/],
    [['mesh', 'status', '--admim', 'x'], /unknown option --admim: did you mean --admin\?/],
    [['mesh', 'status', '--admin', 'here'], /--admin: expected HOST:PORT, not "here"/],
    [['mesh', 'token', 'crete'], /unknown command crete: did you mean create\?/],
    [['mesh', 'token', 'create', '--config', 'x'], /needs --node, --namespace or --service-account/],
    [['mesh', 'token', 'create', '--node', 'a', '--uses', '0'], /--uses: 0 is neither unlimited nor a number/],
    [['mesh', 'token', 'create', '--node', 'a', '--expires', '1'], /--expires: 1 is not a duration/],
    [['mesh', 'capture', 'instal'], /unknown command instal: did you mean install\?/],
    [['mesh', 'graph', '10.0.0.1:9902'], /node proxies are given as --admin 10\.0\.0\.1:9902/],
    [['mesh', 'graph', '--admin', '10.0.0.1:9902,x'], /--admin: expected HOST:PORT, not "x"/],
    [['mesh', 'ready', 'now'], /mesh ready takes no argument now/],
    [['mesh', 'redy'], /unknown command redy: did you mean ready\?/],
    [['mesh', 'node'], /mesh node needs --config FILE/],
    [['mesh', 'node', 'node.yaml'], /a file is given as --config node\.yaml/],
    [['mesh', 'nod'], /unknown command nod: did you mean node\?/],
    [['mesh', 'frob'], /unknown command frob: see `portcullis mesh --help`\.$/m],
    [['mesh', '--bogus'], /unknown option --bogus: see `portcullis mesh --help`\.$/m],
    [['control', '--bogus'], /see `portcullis control --help`\.$/m],
    [['mesh', 'status', '--bogus'], /see `portcullis mesh --help`\.$/m],
    [['mesh', 'ready', '--bogus'], /see `portcullis mesh --help`\.$/m],
    [['mesh', 'token', 'frob'], /see `portcullis mesh token --help`\.$/m],
    [['mesh', 'token', 'list', '--bogus'], /see `portcullis mesh token --help`\.$/m],
    [['mesh', 'capture', 'frob'], /see `portcullis mesh capture --help`\.$/m],
    [['mesh', 'capture', 'install', '--bogus'], /see `portcullis mesh capture --help`\.$/m],
    ...['graph', 'check', 'apply', 'wait', 'rotate', 'node'].map(
      (command) =>
        [
          ['mesh', command, '--bogus'],
          new RegExp(`option --bogus: see \`portcullis mesh ${command} --help\`\\.$`, 'm'),
        ] as const,
    ),
    [['schema', 'nodes'], /unknown configuration nodes: did you mean node\?/],
    [['schema', 'contrl'], /unknown configuration contrl: did you mean control\?/],
  ] as const) {
    const { code, stderr } = await run(...args);
    assert.equal(code, 2, args.join(' '));
    assert.match(stderr, text);
  }
  const unready = await run('mesh', 'ready', '--admin', '127.0.0.1:1');
  assert.equal(unready.code, 1);
  assert.match(unready.stderr, /cannot reach the admin port 127\.0\.0\.1:1: .*ECONNREFUSED/);
  const away = await run('mesh', 'status', '--admin', '127.0.0.1:1');
  assert.equal(away.code, 1);
  assert.match(away.stderr, /cannot reach the admin port 127\.0\.0\.1:1: .*; is the control plane running/);
});
