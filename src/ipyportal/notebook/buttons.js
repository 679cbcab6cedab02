// Hears the clicks on cancel buttons, for one kernel. A button is plain HTML with that kernel's class, and hidden until
// the kernel has answered: in a saved file, an export, or after a restart nobody would hear it.
function initialize({ model }) {
  const mark = model.get("mark");
  const buttonOf = event => event.target.closest?.(`button.${mark}`)?.value;

  const style = document.createElement("style");
  style.textContent =
    `button.${mark} { display: inline-block !important } .${mark}-typed { display: none !important }`;
  const send = content => {
    try {
      model.send(content);
    } catch {
      style.remove();  // its kernel is gone
    }
  };
  const cancel = value => value && send({ cancel: value });
  // What has become of calls comes here, too: Voila, and a page that was loaded anew, show no other change of a card.
  const showEnds = over => {
    for (const [value, html] of Object.entries(over)) {
      for (const button of document.querySelectorAll(`button.${mark}[value="${value}"]`)) {
        const card = button.closest("[role=status]");
        if (card) card.outerHTML = html;
        else button.remove();
      }
    }
  };
  model.on("msg:custom", ({ over }) => {
    document.head.append(style);
    showEnds(over);
  });
  model.on("comm_live_update", () => style.remove());  // the kernel restarts
  send({});

  // A card is shown anew each second, with another button: where it was pressed and where it is let go may be two, and
  // the one that had the focus goes.
  let pressed, focused;
  const again = new MutationObserver(() => {
    if (document.activeElement === document.body) {
      document.querySelector(`button.${mark}[value="${focused}"]`)?.focus({ preventScroll: true });
    }
  });
  const listeners = {
    pointerdown: event => { pressed = buttonOf(event); },
    pointerup: event => { if (pressed === buttonOf(event)) cancel(pressed); },
    click: event => { if (event.detail === 0) cancel(buttonOf(event)); },  // by a key
    focusin: event => {
      focused = buttonOf(event);
      again.disconnect();
      if (focused) again.observe(document.body, { childList: true, subtree: true });
    },
  };
  for (const [kind, listener] of Object.entries(listeners)) document.addEventListener(kind, listener, true);
  return () => {
    for (const [kind, listener] of Object.entries(listeners)) document.removeEventListener(kind, listener, true);
    again.disconnect();
    style.remove();
  };
}

export default { initialize };
