// A function in JavaScript that asks for all that may differ from run to run: clocks, random numbers, answers in the order in
// which they come, timers; and that makes garbage, so that the collector runs.

addEventListener('fetch', (event) => event.respondWith(handle(event.request)));

async function handle(request) {
  const { urls = [] } = await request.json();
  const did = { now: Date.now(), since: performance.now(), random: Math.random(), uuid: crypto.randomUUID() };
  did.bytes = Array.from(crypto.getRandomValues(new Uint8Array(16)));
  let kept = [];
  for (let i = 0; i < 100000; i++) {
    kept.push({ i, text: `x${i}` });
    if (kept.length > 1000) kept = [];
  }
  did.kept = kept.length;
  did.order = [];
  did.came = await Promise.all(urls.map(async (url, at) => {
    try {
      const response = await fetch(url);
      const text = await response.text();
      did.order.push(at);
      return [response.status, response.headers.get('x-token'), text.length];
    } catch (error) {
      did.order.push(at);
      return String(error);
    }
  }));
  await new Promise((done) => setTimeout(done, 2));
  did.later = Date.now();
  console.log(`answers came in the order ${did.order}`);
  return new Response(JSON.stringify(did), { headers: { 'content-type': 'application/json' } });
}
