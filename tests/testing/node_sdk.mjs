// What AgentMail's README and guides show, by the official Node SDK. Run by test_node_sdk.py, which reads the report.
// The arguments: the addresses of the REST API and of the WebSocket.

import { AgentMailClient } from "agentmail";

const [http, websockets] = process.argv.slice(2);
const client = new AgentMailClient({ apiKey: "am_key", environment: { http, websockets }, maxRetries: 0 });
const report = {};

const agent = await client.inboxes.create({ username: "agent", displayName: "Agent", clientId: "agent-1" });
const again = await client.inboxes.create({ username: "agent", displayName: "Agent", clientId: "agent-1" });
const other = await client.inboxes.create(undefined);
report.inboxes = {
    once: agent.inboxId === again.inboxId,
    got: (await client.inboxes.get(agent.inboxId)).displayName,
    listed: (await client.inboxes.list()).count,
    updated: (await client.inboxes.update(agent.inboxId, { metadata: { n: 1 } })).metadata,
};

// The stream, as in the quickstart of WebSockets

// One handler for everything: a second one would take the place of the first.
const events = [];
let wake = () => {};
const socket = await client.websockets.connect();
socket.on("message", (event) => {
    events.push(event);
    wake();
});
async function received(count) {
    while (events.length < count) {
        await new Promise((resolve) => (wake = resolve));
    }
}
await socket.waitForOpen();
socket.sendSubscribe({ type: "subscribe", inboxIds: [agent.inboxId] });
await received(1);
report.subscribed = events[0].inboxIds;

// Mail

const content = Buffer.from("data").toString("base64");
const sent = await client.inboxes.messages.send(
    other.inboxId,
    {
        to: agent.inboxId,
        subject: "Hi",
        text: "Hi!",
        labels: ["outreach"],
        attachments: [{ content, filename: "a.txt", contentType: "text/plain" }],
    },
    { idempotencyKey: "once" },
);
const [item] = (await client.inboxes.messages.list(agent.inboxId, { labels: ["unread"] })).messages;
const message = await client.inboxes.messages.get(agent.inboxId, item.messageId);
const reply = await client.inboxes.messages.reply(agent.inboxId, item.messageId, { text: "Hello!" });
const all = await client.inboxes.messages.replyAll(agent.inboxId, item.messageId, { text: "Hello, all!" });
const forward = await client.inboxes.messages.forward(agent.inboxId, item.messageId, { to: "jane@example.com" });
const updated = await client.inboxes.messages.update(agent.inboxId, item.messageId, {
    addLabels: ["done"],
    removeLabels: ["unread"],
});
const thread = await client.inboxes.threads.get(other.inboxId, sent.threadId);
const found = await client.inboxes.messages.getAttachment(
    agent.inboxId,
    item.messageId,
    message.attachments[0].attachmentId,
);
const raw = await client.inboxes.messages.getRaw(agent.inboxId, item.messageId);
report.mail = {
    from: message.from === other.inboxId,
    text: message.text,
    labels: updated.labels,
    thread: thread.messages.map((part) => part.messageId === sent.messageId || part.inReplyTo === sent.messageId),
    ours: (await client.inboxes.threads.list(agent.inboxId)).threads.map((part) => part.messageCount),
    everywhere: (await client.threads.list()).count,
    forwarded: (await client.inboxes.messages.get(agent.inboxId, forward.messageId)).subject,
    attachment: await (await fetch(found.downloadUrl)).text(),
    raw: (await (await fetch(raw.downloadUrl)).text()).includes(content),
    batch: (await client.inboxes.messages.batchGet(agent.inboxId, { messageIds: [item.messageId] })).count,
    slash: (await client.inboxes.messages.get("odd@agentmail.to", "<a/b?c#d@example.com>")).subject,
};

// Errors, and pods

async function errorOf(promise) {
    try {
        await promise;
    } catch (error) {
        return [error.constructor.name, error.statusCode, error.body.code];
    }
}

report.errors = [
    await errorOf(client.inboxes.get("nobody@agentmail.to")),
    await errorOf(client.inboxes.messages.send(agent.inboxId, { to: "nobody" })),
    await errorOf(client.inboxes.messages.send(agent.inboxId, { to: "a@example.com" }, { idempotencyKey: "once" })),
];
const pod = await client.pods.create({ name: "Acme" });
report.pods = [
    (await client.pods.list()).pods.map((part) => part.name),
    (await client.pods.inboxes.create(pod.podId, { username: "acme" })).podId === pod.podId,
    (await client.pods.inboxes.list(pod.podId)).count,
];

// What the stream told. The answers went to the other inbox, and were sent and delivered.

await received(8);
socket.close();
report.events = events.slice(1).map((event) => event.eventType);
report.received = events[1].message.messageId === sent.messageId;

await client.inboxes.threads.delete(other.inboxId, sent.threadId);
await client.inboxes.delete(other.inboxId);
report.left = (await client.inboxes.list()).count;
console.log(JSON.stringify(report));
