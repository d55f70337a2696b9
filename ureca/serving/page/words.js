"use strict";

// Words in which captions differ.

function wordsOf(text) {
  return text.split(/\s+/).filter(Boolean);
}

function plain(word) {
  return word.toLowerCase().replace(/^[^\p{L}\p{N}]+|[^\p{L}\p{N}]+$/gu, "");
}

// For each word of two captions: true if it is outside their longest common subsequence.
function differing(first, second) {
  const [a, b] = [first.map(plain), second.map(plain)];
  const longest = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      longest[i][j] = a[i] === b[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    }
  }
  const [differsA, differsB] = [a.map(() => true), b.map(() => true)];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (a[i] === b[j]) differsA[i++] = differsB[j++] = false;
    else if (longest[i + 1][j] >= longest[i][j + 1]) i++;
    else j++;
  }
  return [differsA, differsB];
}

// For each word of a caption: true if it distinguishes it from all others; if no word does, from any other.
function apart(words, others) {
  const pairs = others.map((other) => differing(words, other)[0]);
  const fromAll = words.map((_, at) => pairs.length > 0 && pairs.every((differs) => differs[at]));
  return fromAll.includes(true) ? fromAll : words.map((_, at) => pairs.some((differs) => differs[at]));
}

// Renders a caption as nodes, with its differing words in <mark> elements.
function marked(words, differs) {
  const parts = [];
  for (let at = 0; at < words.length;) {
    let end = at + 1;
    while (end < words.length && differs[end] === differs[at]) end++;
    const text = words.slice(at, end).join(" ");
    parts.push(differs[at] ? node("mark", {}, text) : text, " ");
    at = end;
  }
  return parts.slice(0, -1);
}

function plainText(caption) {
  return wordsOf(caption).map(plain).join(" ");
}
