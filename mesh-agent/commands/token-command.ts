// `portcullis mesh token`: join tokens, written where the control plane reads them.
//
// A short process of its own, run as the control plane's user: tokens lie in a private directory.

import { parseDurationMs } from '../../config/units.ts';
import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { type OptionShapes, parseArguments, unknown } from '../../core/process/options.ts';
import { JoinTokens, type TokenGrant, type TokenInfo } from '../identity/join-tokens.ts';
import { asExitError, controlConfigOf, requireControlUser } from './ca-access.ts';
import { TOKEN_HELP } from './help.ts';
import type { MeshIo } from './io.ts';
import { formatAge, formatTable } from './table.ts';

const EXPIRES_DEFAULT = '24h';
const USES_MAX = 1_000_000;

const SHAPES = {
  create: {
    '--config': 'value',
    '--node': 'value',
    '--namespace': 'value',
    '--service-account': 'value',
    '--expires': 'value',
    '--uses': 'value',
    '--json': 'flag',
  },
  list: { '--config': 'value', '--json': 'flag' },
  revoke: { '--config': 'value' },
} satisfies Record<string, OptionShapes>;

/** Runs `portcullis mesh token` with the arguments after these words. Throws an ExitError. */
export async function tokenCommand(args: string[], io: MeshIo): Promise<number> {
  const [action, ...rest] = args;
  if (action === undefined || action === '--help' || action === 'help' || rest.includes('--help')) {
    io.out(TOKEN_HELP);
    return action === undefined ? ExitCode.USAGE : ExitCode.OK;
  }
  if (!Object.hasOwn(SHAPES, action)) throw unknown('command', action, Object.keys(SHAPES), 'mesh token');
  const { options, positional } = parseArguments(rest, SHAPES[action as keyof typeof SHAPES], 'mesh token');
  const idsWanted = action === 'revoke' ? 1 : 0;
  if (positional.length > idsWanted) {
    throw usage(`mesh token ${action} takes no argument ${positional[idsWanted]}.`);
  }
  if (positional.length < idsWanted) throw usage('mesh token revoke needs the ID of a token.');
  const grant = action === 'create' ? readGrant(options, Date.now()) : null;
  const tokens = openTokens(options.get('--config'), action, io);
  try {
    if (grant !== null) return await create(tokens, grant, options.has('--json'), io);
    if (action === 'list') return await list(tokens, options.has('--json'), io);
    return await revoke(tokens, positional[0]!, io);
  } catch (error) {
    throw asExitError(error);
  }
}

async function create(tokens: JoinTokens, grant: TokenGrant, json: boolean, io: MeshIo): Promise<number> {
  const token = await tokens.create(grant);
  const id = token.split('_')[1]!;
  if (json) {
    io.out(`${JSON.stringify({ id, token, expires: new Date(grant.expiresMs).toISOString(), uses: grant.uses })}\n`);
    return ExitCode.OK;
  }
  io.out(`${token}\n`);
  const uses =
    grant.uses === null ? 'any number of certificates' : `${grant.uses} certificate${grant.uses === 1 ? '' : 's'}`;
  io.err(`token ${id}: ${describe(grant)}, good for ${uses}, until ${new Date(grant.expiresMs).toISOString()}\n`);
  return ExitCode.OK;
}

async function list(tokens: JoinTokens, json: boolean, io: MeshIo): Promise<number> {
  const all = await tokens.list();
  if (json) {
    io.out(`${JSON.stringify(all, null, 2)}\n`);
    return ExitCode.OK;
  }
  if (all.length === 0) {
    io.out('there are no join tokens\n');
    return ExitCode.OK;
  }
  const nowMs = Date.now();
  io.out(
    formatTable(
      ['ID', 'FOR', 'USED', 'OF', 'EXPIRES'],
      all.map((token) => [token.id, describe(token), usedText(token), token.uses ?? 'any', left(token, nowMs)]),
    ),
  );
  return ExitCode.OK;
}

async function revoke(tokens: JoinTokens, id: string, io: MeshIo): Promise<number> {
  if (!(await tokens.revoke(id))) {
    throw new ExitError(ExitCode.CONFIG_INVALID, `there is no join token ${id}: see \`portcullis mesh token list\`.`);
  }
  io.out(`revoked: ${id}; certificates that it got stay valid until they expire\n`);
  return ExitCode.OK;
}

function openTokens(file: string | undefined, action: string, io: MeshIo): JoinTokens {
  if (file === undefined) throw usage(`mesh token ${action} needs --config FILE, the control plane's.`);
  const { attestation, ca, trustDomain } = controlConfigOf(file, io);
  const directory = attestation.joinTokenDirectory;
  if (directory === null) {
    throw new ExitError(
      ExitCode.CONFIG_INVALID,
      'the control plane takes no join tokens (attestation.joinTokens: off).',
    );
  }
  requireControlUser(directory, ca.directory);
  return new JoinTokens(directory, trustDomain);
}

function readGrant(options: ReadonlyMap<string, string>, nowMs: number): TokenGrant {
  const node = options.get('--node');
  const accounts = split(options.get('--service-account')).map((text) => {
    const [namespace = '', name = '', more] = text.split('/');
    if (name === '' || more !== undefined) throw usage(`--service-account: ${text} is not NAMESPACE/NAME.`);
    return { namespace, name };
  });
  const namespaces = split(options.get('--namespace'));
  if (node === undefined && namespaces.length === 0 && accounts.length === 0) {
    throw usage('mesh token create needs --node, --namespace or --service-account.');
  }
  const expires = options.get('--expires') ?? EXPIRES_DEFAULT;
  const lifetimeMs = parseDurationMs(expires) ?? 0;
  if (lifetimeMs <= 0) throw usage(`--expires: ${expires} is not a duration such as 30m or 24h.`);
  return {
    ...(node === undefined ? {} : { node }),
    ...(namespaces.length === 0 ? {} : { namespaces }),
    ...(accounts.length === 0 ? {} : { serviceAccounts: accounts }),
    expiresMs: nowMs + lifetimeMs,
    uses: readUses(options.get('--uses') ?? '1'),
  };
}

function readUses(text: string): number | null {
  if (text === 'unlimited') return null;
  const uses = /^\d+$/.test(text) ? Number(text) : 0;
  if (uses < 1 || uses > USES_MAX)
    throw usage(`--uses: ${text} is neither unlimited nor a number from 1 to ${USES_MAX}.`);
  return uses;
}

function split(text: string | undefined): string[] {
  return (text ?? '').split(',').filter((part) => part !== '');
}

function describe({ node, namespaces = [], serviceAccounts = [] }: TokenGrant): string {
  return [
    ...(node === undefined ? [] : [`node ${node}`]),
    ...namespaces.map((name) => `namespace ${name}`),
    ...serviceAccounts.map(({ namespace, name }) => `account ${namespace}/${name}`),
  ].join(', ');
}

function usedText({ used }: TokenInfo): number | string {
  return Number.isFinite(used) ? used : 'damaged';
}

function left({ expiresMs }: TokenInfo, nowMs: number): string {
  return expiresMs <= nowMs ? 'expired' : `in ${formatAge(expiresMs - nowMs)}`;
}

function usage(sentence: string): ExitError {
  return new ExitError(ExitCode.USAGE, sentence);
}
