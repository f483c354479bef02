// The mesh's part of the command line: `portcullis control` and `portcullis mesh`.
//
// Imports a command when it is used, so that `mesh status` does not load what the control plane needs.

import { ExitCode, ExitError } from '../../core/process/exit-codes.ts';
import { parseArguments, unknown } from '../../core/process/options.ts';
import { CONTROL_HELP, MESH_HELP, NODE_HELP } from './help.ts';
import type { MeshIo } from './io.ts';

const VIEWS = ['status', 'services', 'workloads', 'policies', 'roots'];
const OTHERS = ['node', 'ready', 'graph', 'check', 'apply', 'wait', 'rotate', 'token', 'capture'];

/** Runs `portcullis control` with the arguments after the word; resolves to the exit code. Throws an ExitError. */
export async function controlCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(CONTROL_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(args, { '--config': 'value' }, 'control');
  if (positional.length > 0) {
    const hint = `a file is given as --config ${positional[0]}`;
    throw new ExitError(ExitCode.USAGE, `control takes no argument ${positional[0]} (${hint}).`);
  }
  const file = options.get('--config');
  if (file === undefined) throw new ExitError(ExitCode.USAGE, 'control needs --config FILE.');
  const { runControl } = await import('./control-command.ts');
  return runControl(file, io);
}

/** Runs `portcullis mesh` with the arguments after the word; resolves to the exit code. Throws an ExitError. */
export async function meshCommand(args: string[], io: MeshIo): Promise<number> {
  const [command, ...rest] = args;
  if (command === undefined || command === '--help' || command === 'help') {
    io.out(MESH_HELP);
    return command === undefined ? ExitCode.USAGE : ExitCode.OK;
  }
  if (command === 'node') return nodeCommand(rest, io);
  if (command === 'ready' && !rest.includes('--help')) {
    const { readyCommand } = await import('./ready-command.ts');
    return readyCommand(rest, io);
  }
  if (command === 'graph') {
    const { graphCommand } = await import('./graph-command.ts');
    return graphCommand(rest, io);
  }
  if (command === 'capture') {
    const { captureCommand } = await import('../capture/command.ts');
    return captureCommand(rest, io);
  }
  if (command === 'token') {
    const { tokenCommand } = await import('./token-command.ts');
    return tokenCommand(rest, io);
  }
  if (command === 'check') {
    const { checkCommand } = await import('./check-command.ts');
    return checkCommand(rest, io);
  }
  if (command === 'apply' || command === 'wait') {
    const { applyCommand, waitCommand } = await import('./apply-command.ts');
    return command === 'apply' ? applyCommand(rest, io) : waitCommand(rest, io);
  }
  if (command === 'rotate') {
    const { rotateCommand } = await import('./rotate-command.ts');
    return rotateCommand(rest, io);
  }
  if (!VIEWS.includes(command) && command !== 'ready') {
    throw unknown(command.startsWith('-') ? 'option' : 'command', command, [...VIEWS, ...OTHERS, '--help'], 'mesh');
  }
  if (rest.includes('--help')) {
    io.out(MESH_HELP);
    return ExitCode.OK;
  }
  const { statusCommand } = await import('./status-command.ts');
  return statusCommand(command, rest, io);
}

async function nodeCommand(args: string[], io: MeshIo): Promise<number> {
  if (args.includes('--help')) {
    io.out(NODE_HELP);
    return ExitCode.OK;
  }
  const { options, positional } = parseArguments(args, { '--config': 'value' }, 'mesh node');
  if (positional.length > 0) {
    const hint = `a file is given as --config ${positional[0]}`;
    throw new ExitError(ExitCode.USAGE, `mesh node takes no argument ${positional[0]} (${hint}).`);
  }
  const file = options.get('--config');
  if (file === undefined) throw new ExitError(ExitCode.USAGE, 'mesh node needs --config FILE.');
  const { runNode } = await import('../node/node-command.ts');
  return runNode(file, io);
}

/** JSON Schema of the node proxy's configuration. */
export async function nodeJsonSchema(): Promise<object> {
  const { jsonSchemaOf } = await import('../../config/json-schema.ts');
  const { nodeSchema } = await import('../node/node-schema.ts');
  return jsonSchemaOf(nodeSchema, 'Portcullis node proxy configuration');
}

/** JSON Schema of one document of the files that hold a mesh. */
export async function meshJsonSchema(): Promise<object> {
  const { jsonSchemaOf } = await import('../../config/json-schema.ts');
  const { union } = await import('../../config/schema-builder.ts');
  const { documentSchemas } = await import('../control/directory-schema.ts');
  return jsonSchemaOf(union(Object.values(documentSchemas), {}), 'Portcullis mesh document');
}

/** JSON Schema of the control plane's configuration. */
export async function controlJsonSchema(): Promise<object> {
  const { jsonSchemaOf } = await import('../../config/json-schema.ts');
  const { controlSchema } = await import('./control-schema.ts');
  return jsonSchemaOf(controlSchema, 'Portcullis control plane configuration');
}
