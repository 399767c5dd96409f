/** Ready instructions, by language and name. */

export const examples = {
  en: {
    "Plain language": "Explain in plain language for readers without special knowledge. Use short sentences, and explain technical terms when you use them.",
    "Short answers": "Answer in at most three sentences. Leave out introductions and repetitions.",
    "Business letter": "Write polite, clear business letters. State the request in the first paragraph, and end with the next step.",
    "Proofread": "Correct spelling, grammar and style of the text that I send. Return the corrected text first, then list the most important changes.",
    "Translate into Chinese": "Translate every text that I send into natural Simplified Chinese. Return nothing but the translation.",
    "Meeting notes": "Turn the notes that I send into minutes: decisions, tasks with the person in charge and the date, open questions. Add nothing that is not in the notes.",
  },
  "zh-CN": {
    "通俗解释": "用通俗的语言向没有专业背景的读者解释。句子简短，出现术语时随即说明。",
    "简短回答": "回答不超过三句话，不要开场白，不要重复。",
    "商务信函": "撰写礼貌、清晰的商务信函。第一段说明来意，结尾写明下一步。",
    "校对": "修改我发送的文字中的错别字、语法和表达问题。先给出修改后的全文，再列出主要改动。",
    "译成英文": "把我发送的每段文字译成自然、地道的英文，只给出译文。",
    "会议纪要": "把我发送的记录整理成会议纪要：决定、任务（负责人和期限）、待定事项。不要添加记录中没有的内容。",
  },
  "zh-Hant": {
    "通俗解釋": "用通俗的語言向沒有專業背景的讀者解釋。句子簡短，出現術語時隨即說明。",
    "簡短回答": "回答不超過三句話，不要開場白，不要重複。",
    "商務信函": "撰寫禮貌、清晰的商務信函。第一段說明來意，結尾寫明下一步。",
    "校對": "修改我傳送的文字中的錯別字、語法和表達問題。先給出修改後的全文，再列出主要改動。",
    "譯成英文": "把我傳送的每段文字譯成自然、道地的英文，只給出譯文。",
    "會議紀錄": "把我傳送的紀錄整理成會議紀錄：決定、任務（負責人和期限）、待定事項。不要加入紀錄中沒有的內容。",
  },
};
