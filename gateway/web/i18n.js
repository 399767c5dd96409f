/** Every text that a reader sees, in English and Chinese, and the choice between the two. */

const english = {
  tag: "en",
  conversation: "Conversation",
  log: "Messages",
  you: "You",
  assistant: "Samovar",
  hello: "What shall we talk about?",
  helloMore: "Answers are made on the machine that serves this page.",
  message: "Your message",
  placeholder: "Write a message",
  send: "Send",
  stop: "Stop the answer",
  new: "New conversation",
  again: "Try again",
  hint: "Enter sends · Shift + Enter starts a new line · Esc stops the answer",
  thinking: "One moment…",
  unsent: "Will be sent once connected…",
  stopping: "Stopping…",
  queued: ({ position, seconds }) =>
    `Number ${position} in the queue` + (seconds === null ? "" : ` · about ${seconds} s`),
  connected: "Connected",
  connecting: "Connecting…",
  reconnecting: "Reconnecting…",
  cancelled: "Stopped",
  cutAtLimit: "Cut at the limit for one answer",
  incomplete: ({ reason }) => `Incomplete (${reason})`,
  tokens: ({ count, number }) => `${number} ${count === 1 ? "token" : "tokens"}`,
  rate: ({ number }) => `${number} tokens/s`,
  cached: ({ cached, prompt }) => `${cached} of ${prompt} prompt tokens from cache`,
  withWait: ({ what, seconds }) => `${what} Please wait ${seconds} s.`,
  notice:
    "The embedded model knows English only. For Chinese, get Qwen: download " +
    "`qwen2.5-0.5b-instruct-q4_k_m.gguf` from Hugging Face, repository " +
    "`Qwen/Qwen2.5-0.5B-Instruct-GGUF`, and start `make serve MODEL=path/to/the.gguf`.",
  errors: {
    invalid_json: "The server could not read the request.",
    invalid_request: "The server did not accept the request.",
    unsupported_parameter: "The server does not support a part of the request.",
    model_not_found: "The server does not have this model.",
    previous_response_not_found: "The server no longer has this conversation. Please start a new one.",
    context_length_exceeded: "The conversation has grown too long for the model. Please start a new one.",
    message_too_large: "The message is too long.",
    rate_limit_exceeded: "Too many requests at once.",
    queue_full: "Too many people are waiting right now.",
    queue_timeout: "It was not your turn in time.",
    websocket_connection_limit_reached: "The server has too many connections, or this one was open for too long.",
    engine_unavailable: "The model stopped working for a moment.",
    store_unavailable: "The server could not save the conversation.",
    invalid_api_key: "The server wants a valid key.",
    connection_lost: "The connection was lost before the answer was complete.",
    unknown: "Something went wrong.",
  },
};

const chinese = {
  tag: "zh-CN",
  conversation: "对话",
  log: "消息",
  you: "你",
  assistant: "Samovar",
  hello: "想聊点什么？",
  helloMore: "回答由提供此页面的这台机器生成。",
  message: "你的消息",
  placeholder: "输入消息",
  send: "发送",
  stop: "停止回答",
  new: "新对话",
  again: "重试",
  hint: "Enter 发送 · Shift + Enter 换行 · Esc 停止回答",
  thinking: "请稍候…",
  unsent: "连接后将自动发送…",
  stopping: "正在停止…",
  queued: ({ position, seconds }) => `排在第 ${position} 位` + (seconds === null ? "" : ` · 约 ${seconds} 秒`),
  connected: "已连接",
  connecting: "正在连接…",
  reconnecting: "正在重连…",
  cancelled: "已停止",
  cutAtLimit: "已达到单次回答的长度上限",
  incomplete: ({ reason }) => `回答不完整（${reason}）`,
  tokens: ({ number }) => `${number} 个 token`,
  rate: ({ number }) => `${number} token/秒`,
  cached: ({ cached, prompt }) => `提示共 ${prompt} 个 token，其中 ${cached} 个来自缓存`,
  withWait: ({ what, seconds }) => `${what}请等待 ${seconds} 秒。`,
  notice:
    "内置模型只懂英文。想用中文聊天，请换用 Qwen：到 Hugging Face 的 `Qwen/Qwen2.5-0.5B-Instruct-GGUF` 仓库下载 " +
    "`qwen2.5-0.5b-instruct-q4_k_m.gguf`，然后用 `make serve MODEL=path/to/the.gguf` 启动。",
  errors: {
    invalid_json: "服务器无法读取该请求。",
    invalid_request: "服务器未接受该请求。",
    unsupported_parameter: "服务器不支持请求中的某项内容。",
    model_not_found: "服务器上没有这个模型。",
    previous_response_not_found: "服务器上已没有这段对话，请开始新对话。",
    context_length_exceeded: "对话已超出模型的长度上限，请开始新对话。",
    message_too_large: "消息太长。",
    rate_limit_exceeded: "请求过于频繁。",
    queue_full: "现在排队的人太多。",
    queue_timeout: "排队超时。",
    websocket_connection_limit_reached: "服务器的连接数已达上限，或此连接打开得太久。",
    engine_unavailable: "模型暂时停止了工作。",
    store_unavailable: "服务器无法保存对话。",
    invalid_api_key: "服务器需要有效的密钥。",
    connection_lost: "回答完成之前连接已断开。",
    unknown: "出现了问题。",
  },
};

/** Both languages, for what is shown in both whatever the reader's own is. */
export const catalogues = { en: english, zh: chinese };

/** The catalogue for a BCP 47 tag: Chinese for every `zh`, else English. */
export function catalogueFor(tag) {
  return /^zh\b/i.test(tag ?? "") ? chinese : english;
}

/** A text of the catalogue; one that is a function is given `values`. */
export function text(catalogue, key, values = {}) {
  const entry = catalogue[key];
  return typeof entry === "function" ? entry(values) : entry;
}

/** What an error code means to the reader. */
export function errorText(catalogue, code) {
  return Object.hasOwn(catalogue.errors, code) ? catalogue.errors[code] : catalogue.errors.unknown;
}

const attributes = { i18nLabel: "aria-label", i18nTitle: "title", i18nPlaceholder: "placeholder" };

/** Fills all elements below `root` that carry a `data-i18n…` key. */
export function translate(root, catalogue) {
  for (const element of root.querySelectorAll("[data-i18n]")) {
    element.textContent = text(catalogue, element.dataset.i18n);
  }
  for (const [key, attribute] of Object.entries(attributes)) {
    const dashed = key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
    for (const element of root.querySelectorAll(`[data-${dashed}]`)) {
      element.setAttribute(attribute, text(catalogue, element.dataset[key]));
    }
  }
}
