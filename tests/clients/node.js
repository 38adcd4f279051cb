// node-postgres: the simple protocol without values, the extended one with a name or values.
const { Client } = require('pg');

const doors = [
  ['setuser()', "SELECT setuser('bob')", 'SELECT setuser()'],
  ['set_config()', "SELECT set_config('impersonate.target', 'bob', false)",
    "SELECT set_config('impersonate.target', '', false)"],
  ['SET', "SET impersonate.target = 'bob'", "SET impersonate.target = ''"],
  ['RESET', "SET impersonate.target TO 'bob'", 'RESET impersonate.target'],
  ['CALL', "CALL impersonate.impersonate_user('bob')", 'CALL impersonate.impersonate_user(NULL)'],
];

const told = (name, found, wanted = 'bob,alice') =>
  console.log(String(found) === wanted ? `ok ${name}` : `not ok ${name}: ${found}`);
const user = async (client) => (await client.query('SELECT current_user AS u')).rows[0].u;

async function door(client, name, start, end) {
  const found = [];
  try {
    await client.query(start);
    found.push(await user(client));
    await client.query(end);
    found.push(await user(client));
  } catch (error) {
    found.push(error.message);
  }
  told(name, found);
}

(async () => {
  const client = new Client();
  await client.connect();
  for (const [name, start, end] of doors) {
    await door(client, `${name}, simple`, start, end);
    await door(client, `${name}, extended`, { name: `start ${name}`, text: start }, { name: `end ${name}`, text: end });
  }
  await door(client, 'setuser() with a parameter', { text: 'SELECT setuser($1)', values: ['bob'] },
    { text: 'SELECT setuser($1)', values: [null] });
  const found = [];
  await client.query('BEGIN');
  await client.query("SET LOCAL impersonate.target = 'bob'");
  found.push(await user(client));
  await client.query('COMMIT');
  found.push(await user(client));
  told('SET LOCAL', found);
  await client.end();

  const other = new Client({ options: '-c impersonate.target=bob' });
  await other.connect();
  const seen = [await user(other)];
  await other.query("SET impersonate.target = ''");
  seen.push(await user(other));
  told('start-up option', seen);
  await other.end();
})().catch((error) => { console.log(`not ok the connection: ${error.message}`); process.exit(1); });
