// node-postgres: the simple protocol without values, the extended one with a name or values.
const fs = require('fs');
const path = require('path');
const { Client } = require('pg');

// direct, or how pgbouncer hands connections on: session, transaction
const via = process.env.VIA || 'direct';
const witness = "SELECT current_user || ' of ' || session_user";
const all = fs.readFileSync(path.join(__dirname, 'doors.tsv'), 'utf8').trimEnd().split('\n').slice(1).map((line) => {
  const [kind, login, name, tag, begin, endTag, end, endValue] = line.split('\t');
  return { kind, login, name, begin, end, endValue: endValue === '\\N' ? null : endValue };
});
const doors = (login, kind) => all.filter((door) => door.login === login && door.kind === kind);

const told = (name, found, wanted) => {
  const same = JSON.stringify(found) === JSON.stringify(wanted);
  console.log(same ? `ok ${name}` : `not ok ${name}: ${JSON.stringify(found)}`);
};
const thereAndBack = (login) => [`bob of ${login}`, `${login} of ${login}`];
const value = async (client, sql) => Object.values((await client.query(sql)).rows[0])[0];
const user = (client) => value(client, witness);
const pid = (client) => value(client, 'SELECT pg_backend_pid()');

async function connect(login, more) {
  const client = new Client({ user: login, ...more });
  // A connection that is hung up on reports it here as well.
  client.on('error', () => {});
  await client.connect();
  return client;
}

async function door(client, name, login, start, end) {
  const found = [];
  try {
    await client.query(start);
    found.push(await user(client));
    await client.query(end);
    found.push(await user(client));
  } catch (error) {
    found.push(error.message);
  }
  told(name, found, thereAndBack(login));
}

// By the extended protocol, with a name: not where the next statement may go to another connection.
let names = 0;
const extended = (text, values) => {
  names += 1;
  if (via === 'transaction') return { text, values: values || [], queryMode: 'extended' };
  return { name: `s${names}`, text, values };
};

async function local(client, login) {
  for (const { name, begin } of doors(login, 'local')) {
    for (const [protocol, start] of [['simple', begin], ['extended', extended(begin)]]) {
      await client.query('BEGIN');
      await door(client, `${name}, ${protocol}`, login, start, 'COMMIT');
    }
  }
}

async function lasting(client, login) {
  for (const { name, begin, end } of doors(login, 'session')) {
    await door(client, `${name}, simple`, login, begin, end);
    await door(client, `${name}, extended`, login, extended(begin), extended(end));
  }
  for (const { name, begin, end, endValue } of doors(login, 'parameter')) {
    await door(client, name, login, { text: begin, values: ['bob'] }, { text: end, values: [endValue] });
  }
}

async function refused(client, name, statement, sqlstate, hint) {
  const before = await user(client);
  let found = 'no refusal';
  try {
    await client.query(statement);
  } catch (error) {
    found = [error.code, (error.hint || '').includes(hint), (await user(client)) === before];
  }
  told(name, found, [sqlstate, true, true]);
}

// One client goes away in the midst of it, and the next gets its connection, of which the pool has one.
async function handedOn(login) {
  for (const { name, begin, kind } of doors(login, via === 'session' ? 'session' : 'local')) {
    const first = await connect(login);
    if (kind === 'local') await first.query('BEGIN');
    await first.query(begin);
    const found = [await user(first)];
    const before = await pid(first);
    first.connection.stream.destroy();
    const second = await connect(login);
    found.push(await user(second), (await pid(second)) === before);
    await second.end();
    told(`${name}, the next client`, found, [...thereAndBack(login), via === 'session']);
  }
}

async function twoAtOnce(login) {
  const [one, other] = [await connect(login), await connect(login)];
  const found = [(await pid(one)) === (await pid(other))];
  const wanted = [true];
  for (const { begin } of doors(login, 'local')) {
    for (let turn = 0; turn < 3; turn += 1) {
      await one.query('BEGIN');
      await one.query(begin);
      found.push(await user(one));
      await one.query('COMMIT');
      found.push(await user(other));
      wanted.push(...thereAndBack(login));
    }
  }
  told(`two clients by turns, ${login}`, found, wanted);
  await one.end();
  await other.end();
}

async function startUp() {
  let found;
  try {
    const client = await connect('alice', { options: '-c impersonate.target=bob' });
    found = [await user(client)];
    await client.query("SET impersonate.target = ''");
    found.push(await user(client));
    await client.end();
  } catch (error) {
    found = error.message.includes('unsupported startup parameter');
  }
  told('start-up option', found, via === 'direct' ? thereAndBack('alice') : true);
}

(async () => {
  for (const login of ['alice', 'tool']) {
    const client = await connect(login);
    await local(client, login);
    if (via === 'transaction') {
      for (const { name, begin } of doors(login, 'session')) {
        await refused(client, `${name}, refused`, begin, '55000', 'local => true');
      }
    } else {
      await lasting(client, login);
    }
    const statement = login === 'alice' ? "SELECT setuser('carol', local => true)" : 'SET LOCAL ROLE carol';
    await refused(client, `a refusal of ${login}`, statement, '42501', 'GRANT "SET USER" (carol)');
    await client.end();
    if (via !== 'direct') await handedOn(login);
    if (via === 'transaction') await twoAtOnce(login);
  }
  await startUp();
})().catch((error) => { console.log(`not ok the connection: ${error.message}`); process.exit(1); });
