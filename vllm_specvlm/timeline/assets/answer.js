// The growing answer: every token is marked by where it came from, and leads to its step.

const answerTokens = [];

steps.forEach((step, number) => {
  for (let i = 0; i < step.kept; i++) {
    const piece = timeline.pieces[step.start + i];
    const text = answerTokens.length ? piece : piece.trimStart();
    const token = make("span", { class: i < step.path.length ? "accepted" : "own" }, text);
    token.title = number ? `step ${number}` : "from the prompt";
    token.addEventListener("click", () => show(number));
    answerTokens.push([token, number]);
    byId("answer").append(token);
  }
});

function drawAnswer(current) {
  let last = null;
  for (const [token, number] of answerTokens) {
    token.classList.toggle("later", number > current);
    token.classList.toggle("now", number === current);
    if (number === current) last = token;
  }
  const box = byId("answer");
  if (last && box.scrollHeight > box.clientHeight) {
    const below = last.offsetTop - box.offsetTop + last.offsetHeight;
    if (below > box.scrollTop + box.clientHeight || below < box.scrollTop + last.offsetHeight) {
      box.scrollTop = below - box.clientHeight / 2;
    }
  }
}
