// Verifies our proofs and checkpoints with @sigstore/verify. Usage: node verify.cjs FOLDER MODULES COUNT
const fs = require('fs');
const path = require('path');
const crypto = require('crypto');

const [folder, modules, count] = process.argv.slice(2);
const tlog = path.join(modules, '@sigstore', 'verify', 'dist', 'tlog');
const { verifyMerkleInclusion } = require(path.resolve(tlog, 'merkle.js'));
const { verifyCheckpoint } = require(path.resolve(tlog, 'checkpoint.js'));

const keys = JSON.parse(fs.readFileSync(path.join(folder, 'keys.json'), 'utf8'));
const raw = Buffer.from(keys.key, 'base64');
const publicKey = crypto.createPublicKey({
  key: Buffer.concat([Buffer.from('302a300506032b6570032100', 'hex'), raw]), format: 'der', type: 'spki',
});
const keyId = Buffer.from(keys.log.split('+')[1], 'hex');
const log = { logID: keyId, baseURL: keys.origin, publicKey };

const lines = fs.readFileSync(path.join(folder, 'inclusion.jsonl'), 'utf8').trimEnd().split('\n').slice(0, Number(count));
for (const [number, line] of lines.entries()) {
  const vector = JSON.parse(line);
  const entry = {
    canonicalizedBody: Buffer.from(vector.entry, 'base64'),
    inclusionProof: {
      logIndex: String(vector.index),
      hashes: vector.proof.map((each) => Buffer.from(each, 'base64')),
      checkpoint: { envelope: vector.checkpoint },
    },
  };
  let checkpoint = null;
  try { checkpoint = verifyCheckpoint(entry, [log]); } catch { /* the signature does not hold */ }
  if ((checkpoint !== null) !== vector.signed) throw new Error(`line ${number}: signed is ${vector.signed}`);
  if (checkpoint === null) continue;
  let holds = true;
  try { verifyMerkleInclusion(entry, checkpoint); } catch { holds = false; }
  if (holds !== vector.good) throw new Error(`line ${number}: good is ${vector.good}`);
}
console.log(`@sigstore/verify: ${lines.length} inclusion proofs with their checkpoints, judged as they are`);
