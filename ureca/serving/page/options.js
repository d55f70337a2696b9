"use strict";

// Question and generation parameters of the next captions.

class Options {
  constructor(form) {
    this.form = form;
  }

  // Shows the parameters that the model has; model: an item of /v1/models.
  configure(model) {
    const { question, max_new_tokens: length } = this.form.elements;
    for (const field of this.form.querySelectorAll("[data-of-model]")) field.hidden = !model.answers_questions;
    this.form.querySelector("#length-unit").textContent = model.answers_questions ? "tokens" : "words";
    question.placeholder = model.question ?? "";
    length.max = length.placeholder = model.max_new_tokens;
    this.form.hidden = false;
  }

  // Returns the fields of a request that differ from the service's defaults; null, with a message at the field, if one
  // is invalid.
  read() {
    if (this.form.checkValidity()) return this.values();
    this.form.querySelector("details").open = true;
    this.form.reportValidity();
    return null;
  }

  // Returns the fields as they are.
  values() {
    const given = {};
    for (const field of this.form.querySelectorAll("input")) {
      const text = field.value.trim();
      if (text !== "" && !field.closest("[hidden]")) given[field.name] = field.type === "number" ? Number(text) : text;
    }
    return given;
  }
}
