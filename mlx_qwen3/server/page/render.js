/**
 * Markdown to elements, safely: whatever a model writes, no script runs, nothing is loaded, no form is sent.
 *
 * Three walls: HTML in the text is shown as text; DOMPurify removes all but a few tags and attributes; the page's
 * Content-Security-Policy allows only scripts of this server, and no text as HTML that has not passed DOMPurify.
 */
import hljs from "./vendor/highlight.js";
import { Marked } from "./vendor/marked.js";
import DOMPurify from "./vendor/purify.js";

const MOST_HIGHLIGHTED = 50_000; // characters of a block: colouring a longer one would delay the stream

const PURIFY = {
  ALLOWED_TAGS:
    "a blockquote br code del em h1 h2 h3 h4 h5 h6 hr li ol p pre span strong table tbody td th thead tr ul".split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "start", "align", "data-language"],
  ADD_URI_SAFE_ATTR: ["start", "align", "data-language"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

const renderer = {
  html: ({ text, block }) => (block ? `<p>${escape(text.trimEnd())}</p>` : escape(text)),
  // A picture from elsewhere would tell its server what was said here. It becomes a link.
  image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || href)}</a>`,
  checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  code({ text, lang }) {
    const language = lang?.match(/^[\w+#.-]+/)?.[0] ?? "";
    const known = hljs.getLanguage(language) && text.length < MOST_HIGHLIGHTED;
    const html = known ? hljs.highlight(text, { language, ignoreIllegals: true }).value : escape(text);
    return `<pre data-language="${escape(language)}"><code>${html}\n</code></pre>`;
  },
};

/** Formulas stay as they were written: Markdown would take away their backslashes, and read `_` as emphasis. */
const formula = {
  name: "formula",
  level: "inline",
  start: (text) => text.match(/\\[([]|\$\$/)?.index,
  tokenizer(text) {
    const match = /^(?:\\\([^]+?\\\)|\\\[[^]+?\\\]|\$\$[^]+?\$\$)/.exec(text);
    return match ? { type: "formula", raw: match[0] } : undefined;
  },
  renderer: ({ raw }) => `<span class="formula">${escape(raw)}</span>`,
};

const markdown = new Marked({ gfm: true, breaks: true, renderer, extensions: [formula] });

/** The elements of one text that grows. Only the blocks that change are made anew, so that a selection stays. */
export class Growing {
  #element;
  #sources = [];

  constructor(element) {
    this.#element = element;
  }

  update(text) {
    const tokens = markdown.lexer(text).filter((token) => token.type !== "space");
    tokens.forEach((token, index) => {
      if (this.#sources[index] === token.raw) return;
      const block = document.createElement("div");
      block.append(elements(token));
      const present = this.#element.children[index];
      if (present) present.replaceWith(block);
      else this.#element.append(block);
    });
    this.#sources = tokens.map((token) => token.raw);
    while (this.#element.children.length > tokens.length) this.#element.lastElementChild.remove();
  }
}

function elements(token) {
  const fragment = DOMPurify.sanitize(markdown.parser([token]), PURIFY);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  fragment.querySelectorAll("table").forEach(widen);
  fragment.querySelectorAll("pre").forEach(frame);
  return fragment;
}

/** A table in a box that scrolls if it is wider than the page. */
function widen(table) {
  const box = document.createElement("div");
  box.className = "wide";
  table.replaceWith(box);
  box.append(table);
}

/** A head over a block of code: its language, and a button that copies it. */
function frame(pre) {
  const block = document.getElementById("code-block").content.firstElementChild.cloneNode(true);
  block.querySelector(".language").textContent = pre.dataset.language || "text";
  pre.replaceWith(block);
  block.append(pre);
}

function escape(text) {
  return text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);
}
