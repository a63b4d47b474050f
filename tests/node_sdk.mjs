// What AgentMail's quickstarts show, by its official Node SDK: run by test_node_sdk.py, with the emulator's addresses.
import { AgentMailClient } from "agentmail";

const [http, websockets] = process.argv.slice(2);
const client = new AgentMailClient({ apiKey: "am_any", environment: { http, websockets } });

const agent = await client.inboxes.create({ username: "agent" });
const person = await client.inboxes.create({ username: "person" });

const socket = await client.websockets.connect();
let confirm, receive;
const confirmed = new Promise((resolve) => (confirm = resolve));
const received = new Promise((resolve) => (receive = resolve));
// One handler for both: a second one would take the place of the first.
socket.on("message", (event) => {
  if (event.type === "subscribed") confirm(event);
  if (event.eventType === "message.received") receive(event);
});
await socket.waitForOpen();
socket.sendSubscribe({ type: "subscribe", inboxIds: [agent.inboxId] });
const confirmation = await confirmed;

const { threadId } = await client.inboxes.messages.send(person.inboxId, {
  to: [agent.inboxId],
  subject: "Hello",
  text: "Are you there?",
});
const { message } = await received;
await client.inboxes.messages.reply(agent.inboxId, message.messageId, { text: "I am." });
await client.inboxes.messages.update(agent.inboxId, message.messageId, { addLabels: ["answered"] });
const answered = await client.inboxes.messages.get(agent.inboxId, message.messageId);
const listed = await client.inboxes.messages.list(person.inboxId, { labels: ["received"] });
socket.close();

console.log(
  JSON.stringify({
    confirmed: confirmation.inboxIds,
    text: answered.text,
    labels: answered.labels,
    answers: listed.messages.map((item) => [item.subject, item.from, item.threadId === threadId]),
  }),
);
