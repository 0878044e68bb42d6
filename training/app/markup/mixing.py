"""The map of which concept counts at which layers and times: a template over its JSON, and what a click does."""

MAP = """${value ? (m => `<p>Layers down, time across: noise left, image right. Click to change.</p>
<table><tr><td></td>${m.columns.map((c, k) => `<th>${k % 3 ? '' : c.split('-')[0]}</th>`).join('')}</tr>
${m.rows.map((r, i) => `<tr><th>${r}</th>${m.second[i].map((on, k) => `<td><button data-cell="${i},${k}"
 class="${on ? 'second' : 'first'}" title="${r}, t ${m.columns[k]}: ${m.names[on]}"></button></td>`).join('')}</tr>`)
.join('')}</table><p><i class="first"></i>${m.names[0]}<i class="second"></i>${m.names[1]}</p>`)(JSON.parse(value))
: ''}"""

CLICK = """element.addEventListener('click', event => {
  const cell = event.target.closest('[data-cell]');
  if (!cell) return;
  const [row, column] = cell.dataset.cell.split(',').map(Number), map = JSON.parse(props.value);
  map.second[row][column] = 1 - map.second[row][column];
  props.value = JSON.stringify(map);
});"""
