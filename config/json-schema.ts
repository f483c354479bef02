// The JSON Schema of a configuration, for editors (`./portcullis schema`).
//
// Control thread. The same schema that validates, as plain data, with one addition: editors see a
// file before environment variables are substituted, so every value may also be a text with ${...}.
// Spec: JSON Schema draft 2020-12.

import type { TSchema } from 'typebox';
import { NOTE } from './kinds.ts';
import { configSchema } from './schema.ts';

type Plain = Record<string, unknown>;

/** The schema of the gateway's configuration as plain data: what JSON Schema knows, and nothing of ours. */
export function jsonSchema(): object {
  return jsonSchemaOf(configSchema, 'Portcullis gateway configuration');
}

/** Any schema as plain data. */
export function jsonSchemaOf(schema: TSchema, title: string): object {
  return {
    $schema: 'https://json-schema.org/draft/2020-12/schema',
    title,
    ...(plain(schema) as Plain),
    $defs: {
      variable: {
        type: 'string',
        pattern: '\\$\\{',
        // biome-ignore lint/suspicious/noTemplateCurlyInString: the syntax of variables
        description: 'A value with environment variables: ${NAME} or ${NAME:-default}.',
      },
    },
  };
}

function plain(node: unknown): unknown {
  if (Array.isArray(node)) return node.map(plain);
  if (typeof node !== 'object' || node === null) return node;
  const copy: Plain = {};
  for (const [key, value] of Object.entries(node)) if (key !== NOTE) copy[key] = plain(value);
  return NOTE in node ? withVariables(copy) : copy;
}

/** Lets a value also be a text with variables, where that is not allowed anyway. */
function withVariables(leaf: Plain): Plain {
  const { description, default: fallback, ...rest } = leaf;
  if (rest.type === 'string' && rest.pattern === undefined) return leaf;
  const branches = Array.isArray(rest.anyOf) ? rest.anyOf : [rest];
  return {
    description,
    ...(fallback === undefined ? {} : { default: fallback }),
    anyOf: [...branches, { $ref: '#/$defs/variable' }],
  };
}
